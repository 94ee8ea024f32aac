"""Settings of the simulated shop, read from the environment. Every name is the variable's name in upper case."""

from __future__ import annotations

from pydantic import Field, SecretStr

from shared.adapters.settings_base import Settings


class ShopSettings(Settings):
    """How much the shoppers do, and how often their taste shifts."""

    shop_rate: float = Field(200.0, gt=0, description="events a second")
    shop_shift_s: float = Field(1800.0, ge=0, description="taste shifts at each multiple of it on the clock; 0: never")
    shop_seed: int = Field(1, description="the same seed at the same time of day shows the same taste")
    shop_http: str = Field("", description="a recommender's address, asked before each action; empty: nobody asks")
    shop_api_key: SecretStr = Field(SecretStr(""), description="goes along, where the recommender wants one")
    shop_host: str = "0.0.0.0"
    shop_port: int = Field(8083, ge=0, le=65535, description="health")
