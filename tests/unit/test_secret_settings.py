"""Secrets from files, and settings that do not show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from services.stack.settings import StackSettings
from shared.adapters import settings
from shared.adapters.settings import HttpSettings, KafkaSettings, RedisSettings
from shared.core.errors import SettingsInvalid

CLASSES = [KafkaSettings, RedisSettings, HttpSettings, StackSettings]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_secret_may_come_from_a_file(cls: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = [name for name, field in cls.model_fields.items() if field.annotation is SecretStr]
    assert names
    for name in names:
        if f"{name}_file" in cls.model_fields:
            continue  # read by its own rules
        (tmp_path / name).write_text(f" of {name} \r\n\n")
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(f"{name.upper()}_FILE", str(tmp_path / name))
        assert getattr(cls(), name).get_secret_value() == f" of {name} "
        assert f"of {name}" not in repr(cls()) + str(cls().model_dump())


def test_all_settings_with_secrets_are_looked_at():
    holders = {
        cls for cls in vars(settings).values()
        if isinstance(cls, type) and any(f.annotation is SecretStr for f in getattr(cls, "model_fields", {}).values())
    }  # fmt: skip
    assert holders == set(CLASSES) - {StackSettings}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REDIS_PASSWORD", raising=False)
    path = tmp_path / "password"
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(path))
    with pytest.raises(SettingsInvalid, match=r"REDIS_PASSWORD_FILE=.*No such file"):
        RedisSettings()
    path.write_bytes(b"\xff s3cret")
    with pytest.raises(SettingsInvalid, match=r"REDIS_PASSWORD_FILE=.*UTF-8") as error:
        RedisSettings()
    assert "s3cret" not in str(error.value)
    path.write_text("from the file")
    monkeypatch.setenv("REDIS_PASSWORD", "from the environment")
    with pytest.raises(SettingsInvalid, match="both set"):
        RedisSettings()


def test_an_error_names_the_setting_and_not_its_value(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", "s3cret in the wrong place")
    with pytest.raises(ValidationError, match="kafka_sasl_mechanism") as error:
        KafkaSettings()
    assert "s3cret" not in str(error.value)
