"""Identifiers that we make."""

import os
import uuid

_IDEMPOTENT = uuid.UUID("6f1c3ad4-5f0e-5b7e-9a52-6d0f6c1f4f0b")


def uuid7(now_ms: int) -> str:
    """A random id that sorts by time: UUID version 7 (RFC 9562, section 5.7)."""
    random = int.from_bytes(os.urandom(10))
    rand_a, rand_b = random >> 68, random & (1 << 62) - 1
    value = (now_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b
    return str(uuid.UUID(int=value))


def derived(*parts: str) -> str:
    """The same id for the same parts: UUID version 5 (RFC 9562, section 5.5)."""
    return str(uuid.uuid5(_IDEMPOTENT, "\0".join(parts)))
