"""Settings of the demo, read from the environment. Every name is the variable's name in upper case."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DemoSettings(BaseSettings):
    """How long the demo takes and how much it streams; zeros are told by the source (shoppers or a log)."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    demo_seconds: float = Field(0.0, ge=0, description="until taste shifts; 0: 75 on shoppers, 150 on a log")
    demo_history: int = Field(0, ge=0, description="events to train on; 0: 16,000 of shoppers, 230,000 of a log")
    demo_rate: float = Field(
        0.0, ge=0, description="events a second after the first part; 0: 200 of shoppers, 100 of a log"
    )
    demo_shift_seconds: float = Field(
        240.0, ge=0, description="at most, from the shoppers' shift of taste on; 0: no shift"
    )
    demo_seed: int = Field(1, description="of the shoppers and of the training")
    demo_keep: bool = Field(False, description="after the summary, stream on and serve until Ctrl-C")
