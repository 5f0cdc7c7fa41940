"""The settings: read once, from the environment and an `.env` file, frozen ever after.

Only `app`, `server` and `cli` know them; every part is given the narrow values that it needs.
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, create_model, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.session.errors import CannotStart
from gateway.session.model import Limits

LIMIT_PREFIX = "GATEWAY_LIMIT_"
_MOST_DAYS = 36_500
_DAYS = re.compile(r"[0-9]{1,9}")
_COLLECTOR = re.compile(r"(https?://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

Dependency = Literal["redis", "database"]
"""What readiness looks at."""


class SettingsError(CannotStart):
    """A setting is wrong; the message has one line for each, for a person."""


def _tenant_days(value: object) -> object:
    """`acme=30,other=365` as a table."""
    if not isinstance(value, str):
        return value
    days: dict[str, int] = {}
    for pair in filter(None, map(str.strip, value.split(","))):
        tenant, _, count = pair.partition("=")
        if not (_TENANT.fullmatch(tenant) and _DAYS.fullmatch(count)):
            raise ValueError("must be tenants and days, as in acme=30,other=365")
        if not 1 <= int(count) <= _MOST_DAYS:
            raise ValueError(f"days must be at least 1, at most {_MOST_DAYS}")
        if tenant in days:
            raise ValueError(f"tenant {tenant} is there twice")
        days[tenant] = int(count)
    return days


class Settings(BaseSettings):
    """See the table in the README."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    host: Annotated[str, Field(validation_alias="GATEWAY_HOST")] = "127.0.0.1"
    port: Annotated[int, Field(validation_alias="GATEWAY_PORT", ge=0, le=65535)] = 8000
    admin_port: Annotated[
        int | None, Field(validation_alias="GATEWAY_ADMIN_PORT", ge=0, le=65535)
    ] = None
    data_dir: Annotated[Path, Field(validation_alias="GATEWAY_DATA_DIR")] = Path(".nooble")
    redis_url: Annotated[str | None, Field(validation_alias="REDIS_URL")] = None
    database_url: Annotated[str | None, Field(validation_alias="DATABASE_URL")] = None
    database_migrate: Annotated[bool, Field(validation_alias="GATEWAY_DATABASE_MIGRATE")] = False
    retention_days: Annotated[
        int | None, Field(validation_alias="GATEWAY_RETENTION_DAYS", ge=1, le=_MOST_DAYS)
    ] = None
    retention_tenants: Annotated[
        dict[str, int],
        NoDecode,
        BeforeValidator(_tenant_days),
        Field(validation_alias="GATEWAY_RETENTION_TENANTS"),
    ] = {}
    drain_s: Annotated[float, Field(validation_alias="GATEWAY_DRAIN_S", ge=0)] = 60.0
    readiness_requires: Annotated[
        frozenset[Dependency], NoDecode, Field(validation_alias="READINESS_REQUIRES")
    ] = frozenset(("redis", "database"))
    ack_replicas: Annotated[int, Field(validation_alias="GATEWAY_ACK_REPLICAS", ge=0)] = 0
    otlp_endpoint: Annotated[str | None, Field(validation_alias="OTLP_ENDPOINT")] = None
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        Field(validation_alias="GATEWAY_LOG_LEVEL"),
    ] = "INFO"
    log_format: Annotated[
        Literal["auto", "json", "text"], Field(validation_alias="GATEWAY_LOG_FORMAT")
    ] = "auto"

    def address(self, port: int) -> str:
        """Where a port of this gateway is found, as it stands in a URL."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @field_validator("database_url", "otlp_endpoint", "admin_port", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector(cls, value: str | None) -> str | None:
        if value is not None and not _COLLECTOR.fullmatch(value):
            raise ValueError("must be host:port, or http(s)://host:port")
        return value

    @field_validator("readiness_requires", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        names = [name.strip() for name in value.split(",") if name.strip()]
        return names or cls.model_fields["readiness_requires"].default


def load_settings(**overrides: Any) -> tuple[Settings, Limits]:
    """The settings and the limits; `overrides` (by field name) stand above the environment.

    Raises:
        SettingsError: names each wrong variable, its value and what is allowed.
    """
    given = {
        str(Settings.model_fields[name].validation_alias): value
        for name, value in overrides.items()
        if value is not None
    }
    problems: list[str] = []
    settings = limits = None
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems += _explain(error, "")
    try:
        limits = Limits(**_LimitSettings().model_dump())
    except ValidationError as error:
        problems += _explain(error, LIMIT_PREFIX)
    if settings is None or limits is None:
        raise SettingsError("\n".join(problems))
    return settings, limits


def _limit_model() -> type[BaseSettings]:
    """One variable for each of the domain's limits: `GATEWAY_LIMIT_` and its name."""

    class Base(BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix=LIMIT_PREFIX, env_file=".env", env_file_encoding="utf-8", extra="ignore"
        )

    bounds: dict[str, Any] = {
        item.name: (Annotated[type(item.default), Field(gt=0)], item.default)
        for item in fields(Limits)
    }
    return create_model("LimitSettings", __base__=Base, **bounds)


_LimitSettings = _limit_model()


def _explain(error: ValidationError, prefix: str) -> list[str]:
    return [
        f"{prefix}{item['loc'][0]}".upper()
        + f"={item['input']}: {item['msg'][0].lower()}{item['msg'][1:]}"
        for item in error.errors()
    ]
