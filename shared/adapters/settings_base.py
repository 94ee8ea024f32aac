"""What all settings share: read from the environment, frozen, and secrets that may come from a file.

A setting that holds a secret, REDIS_PASSWORD for one, may be given as REDIS_PASSWORD_FILE=/run/secrets/redis instead:
the file's content without the line break at its end. So no secret stands in an image or in ``docker inspect``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.core.errors import SettingsInvalid

_MOST_BYTES = 1 << 20


class Settings(BaseSettings):
    """Base of all our settings. An error names the setting, never its value: it may be a secret."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the files that it names."""
        return init_settings, env_settings, SecretFiles(settings_cls)


class SecretFiles(PydanticBaseSettingsSource):
    """NAME_FILE for every secret setting NAME, unless the class has a setting of that name itself."""

    def __init__(self, settings_cls: type[BaseSettings], environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(settings_cls)
        self._environment = environment

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """(the secret or None, the field's name, False). Raises SettingsInvalid for a file that cannot be read."""
        name = field_name.upper()
        path = self._environment.get(f"{name}_FILE", "")
        if not path or field.annotation is not SecretStr or f"{field_name}_file" in self.settings_cls.model_fields:
            return None, field_name, False
        if self._environment.get(name):
            raise SettingsInvalid(f"{name} and {name}_FILE are both set: which of them counts?")
        return read_secret(path, f"{name}_FILE"), field_name, False

    def __call__(self) -> dict[str, Any]:
        """All secrets that come from files."""
        found: dict[str, Any] = {}
        for field_name, field in self.settings_cls.model_fields.items():
            value, _, _ = self.get_field_value(field, field_name)
            if value is not None:
                found[field_name] = value
        return found


def read_secret(path: str, setting: str) -> str:
    """A file's text without line breaks at its end. Raises SettingsInvalid that names the setting, not the content."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SettingsInvalid(f"{setting}={path}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise SettingsInvalid(f"{setting}={path}: larger than {_MOST_BYTES} bytes")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SettingsInvalid(f"{setting}={path}: not UTF-8") from None
