"""URLs as they may be printed and logged."""

import re
from urllib.parse import unquote

_SECRET = re.compile("pass|secret|token|key", re.IGNORECASE)


def mask(url: str) -> str:
    """The URL without its password, and without what its query says of secrets by their name."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        rest = f"{user}{colon}{'***' if colon else ''}@{host}"
    place, mark, query = rest.partition("?")
    return f"{scheme}{separator}{place}{mark}{'&'.join(map(_mask_argument, query.split('&')))}"


def _mask_argument(argument: str) -> str:
    name, equals, _ = argument.partition("=")
    return f"{name}{equals}***" if equals and _SECRET.search(unquote(name)) else argument
