"""Settings with a form of their own."""

import pytest

from gateway.settings import SettingsError, load_settings


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("acme=30,other=365", {"acme": 30, "other": 365}),
        (" acme=30 , other=365, ", {"acme": 30, "other": 365}),
        ("", {}),
    ],
)
def test_retention_by_tenant(
    monkeypatch: pytest.MonkeyPatch, value: str, meant: dict[str, int]
) -> None:
    monkeypatch.setenv("GATEWAY_RETENTION_TENANTS", value)
    settings, _ = load_settings()
    assert settings.retention_tenants == meant
    assert settings.retention_days is None, "by default history is for good"


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("GATEWAY_RETENTION_DAYS", "0", "greater than or equal to 1"),
        ("GATEWAY_RETENTION_DAYS", "99999999", "less than or equal to"),
        ("GATEWAY_RETENTION_TENANTS", "acme", "acme=30,other=365"),
        ("GATEWAY_RETENTION_TENANTS", "acme=0", "at least 1"),
        ("GATEWAY_RETENTION_TENANTS", "=5", "acme=30"),
        ("GATEWAY_RETENTION_TENANTS", "acme=30,Acme=5", "acme=30,other=365"),
        ("GATEWAY_RETENTION_TENANTS", "acme=٣", "acme=30"),
        ("GATEWAY_RETENTION_TENANTS", "acme=30,acme=5", "twice"),
        ("GATEWAY_DATABASE_MIGRATE", "perhaps", "boolean"),
        ("OTLP_ENDPOINT", "otel-collector", "host:port"),
        ("OTLP_ENDPOINT", "ftp://collector:4317", "host:port"),
        ("GATEWAY_ADMIN_PORT", "65536", "less than or equal to 65535"),
    ],
)
def test_what_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{variable}={value}: ")
    assert allowed in line


@pytest.mark.parametrize(
    "variable", ["DATABASE_URL", "OTLP_ENDPOINT", "READINESS_REQUIRES", "GATEWAY_ADMIN_PORT"]
)
def test_what_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "")
    settings, _ = load_settings()
    assert settings.database_url is None
    assert settings.otlp_endpoint is None
    assert settings.admin_port is None
    assert settings.readiness_requires == {"redis", "database"}


def test_of_a_wrong_member_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READINESS_REQUIRES", "redis,moon")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    [line] = str(caught.value).splitlines()
    assert line.startswith("READINESS_REQUIRES=")
