"""Settings of the local stack, read from the environment. Every name is the variable's name in upper case."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from shared.adapters.settings_base import Settings


class StackSettings(Settings):
    """Where the stack runs. The services take all their other settings from the same environment."""

    stack_dir: Path | None = Field(
        None,
        description="Redis data, models, logs; stays. Unset: a fresh temporary folder that goes when the stack stops",
    )
    model_uri: str = Field("", description="the model registry; empty: STACK_DIR/models")
    session_log_uri: str = Field("", description="the session log; empty: STACK_DIR/session-log")
    kafka_bootstrap_servers: str = Field("", description="use this broker; empty: start the embedded one")
    redis_url: SecretStr = Field(SecretStr(""), description="use this Redis; empty: start one")
    redis_port: int = Field(0, ge=0, le=65535, description="of the Redis that we start; 0: a random free port")
    http_host: str = "127.0.0.1"
    http_port: int = Field(0, ge=0, le=65535, description="of the recommender; 0: a random free port")
    consumer_port: int = Field(0, ge=0, le=65535, description="health of the consumer; 0: a random free port")
    retrainer_port: int = Field(0, ge=0, le=65535, description="health of the retrainer; 0: a random free port")
    stack_ready_s: float = Field(60.0, gt=0, description="a start that takes longer has failed")
    stack_stop_s: float = Field(15.0, gt=0, description="a service that takes longer to stop is killed")
