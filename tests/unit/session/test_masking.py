"""What is printed and logged of a URL."""

import pytest

from gateway.session.masking import mask, mask_secrets


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the bearer of {news} at = ?" + "key" * 20_000 + "eyJaaaa-" * 10_000, None),  # at once
        ("the bearer, at http://host:80/a@b", None),
        ("to redis://ann:se{cret@host/0: refused", "to redis://ann:***@host/0: refused"),
        ("GET /x?a=1&access_token=s3cret HTTP", "GET /x?a=1&access_token=*** HTTP"),
        ('{"Authorization": "Bearer abcdefgh.x-y"}', '{"Authorization": "Bearer ***"}'),
        ("got eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2ln", "got ey***"),
    ],
)
def test_no_secret_is_left_in_a_line(text: str, shown: str | None) -> None:
    assert mask_secrets(text.encode()).decode() == (text if shown is None else shown)
