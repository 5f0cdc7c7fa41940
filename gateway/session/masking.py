"""What may be printed and logged of URLs, and of text that may hold one."""

import re
from urllib.parse import unquote

_SECRET = re.compile("pass|secret|token|key", re.IGNORECASE)


# What surely stands in a line that the pattern is for, and the pattern: repetitions are bounded,
# since anybody's text may be in it.
_SECRETS = [
    (b"://", re.compile(rb"""(://[^\s/@:"'\\]{0,128}:)[^\s/@"'\\]{1,512}(?=@)""")),
    (
        b"=",
        re.compile(
            rb"""([?&][\w-]{0,32}?(?:pass|secret|token|key)[\w-]{0,32}=)[^\s"'\\&,;]+""",
            re.IGNORECASE,
        ),
    ),
    (b"earer ", re.compile(rb"""(\b[Bb]earer )[^\s"'\\,;]{8,}""")),
    (b"eyJ", re.compile(rb"\b(ey)J[\w-]{4,1024}\.ey[\w-]+\.[\w-]*")),  # a JSON Web Token
]


def mask_secrets(line: bytes) -> bytes:
    """A line of a log without what looks like a secret; what is JSON stays JSON."""
    for sign, pattern in _SECRETS:
        if sign in line:
            line = pattern.sub(rb"\1***", line)
    return line


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
