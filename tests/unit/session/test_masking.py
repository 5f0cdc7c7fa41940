"""What is printed and logged of a URL."""

import pytest

from gateway.session.masking import mask


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host/0?db=1", "redis://host/0?db=1"),
        ("redis://ann@host", "redis://ann@host"),
        ("redis://ann:secret@host/0", "redis://ann:***@host/0"),
        ("redis://:sec?ret=/@host", "redis://:***@host"),
        (
            "redis://host?password=secret&db=1&passFile=x",
            "redis://host?password=***&db=1&passFile=***",
        ),
        ("redis://host?p%61ssword=secret", "redis://host?p%61ssword=***"),
        (
            "redis://host?auth_token=sec@ret&ssl_keyfile=x",
            "redis://host?auth_token=***&ssl_keyfile=***",
        ),
        ("rediss://host?client_secret=a=b", "rediss://host?client_secret=***"),
    ],
)
def test_no_secret_is_shown(url: str, shown: str) -> None:
    assert mask(url) == shown
