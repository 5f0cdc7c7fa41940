"""Names of keys and channels.

A session's names end in `{pN}:tenant:session`, N = CRC-32 of the last two modulo 128: the partition
is the unit of atomicity and of scale. An agent's end in `{a:agent}`. Tenants, agents and session
ids have a form without `:` and `|` (see `protocol.frames`), so nothing can be forged by a name.
"""

from zlib import crc32

from gateway.session.model import RunRef, SessionKey

PARTITIONS = 128


def partition(key: SessionKey) -> int:
    """The partition of a session."""
    return crc32(f"{key.tenant}:{key.session_id}".encode()) % PARTITIONS


def _base(key: SessionKey) -> str:
    return f"{{p{partition(key)}}}:{key.tenant}:{key.session_id}"


def session(key: SessionKey) -> str:
    """The session's hash; the scripts derive its other keys from this name."""
    return f"s:{_base(key)}"


def tenant_of(key: str) -> str:
    """The tenant of a session's key; empty for what is not a session's."""
    return key.split(":", 3)[2] if key.startswith("s:") else ""


def events_channel(key: SessionKey) -> str:
    """Where the session's log entries are pushed."""
    return f"e:{_base(key)}"


def control_channel(key: SessionKey) -> str:
    """Where cancellations of the session's runs are pushed."""
    return f"c:{_base(key)}"


def probe_channel(beside: str, token: str) -> str:
    """A channel on the same slot as a key or channel, for nobody else."""
    return f"probe:{beside[beside.index('{') : beside.index('}') + 1]}:{token}"


def user_sessions(number: int, tenant: str, user: str) -> str:
    """The sessions of a user in a partition."""
    return f"u:{{p{number}}}:{tenant}:{user}"


def due(number: int) -> str:
    """The due times of a partition."""
    return f"due:{{p{number}}}"


def journal(number: int) -> str:
    """What waits for the archive in a partition; the scripts derive its other names from this."""
    return f"j:{{p{number}}}"


def journal_bytes(number: int) -> str:
    """How many bytes that is; the scripts count them."""
    return f"jb:{{p{number}}}"


def dead_letters(number: int) -> str:
    """What the archive refuses of a partition's journal."""
    return f"jd:{{p{number}}}"


def waiting(agent: str) -> str:
    """The waiting runs of an agent; the scripts derive its queues from this name."""
    return f"aw:{{a:{agent}}}"


def presence(agent: str) -> str:
    """The live workers of an agent."""
    return f"ap:{{a:{agent}}}"


def ring_channel(agent: str) -> str:
    """Where waiting runs of the agent are announced."""
    return f"ag:{{a:{agent}}}"


AGENTS = "agents"
"""All agents that ever announced themselves: name to JSON."""

NODES = "nodes"
"""All nodes, by the time until which they count as alive."""


def reference(ref: RunRef) -> str:
    """A run as it stands in an agent's queue."""
    return "|".join(ref)


def parse_reference(text: str) -> RunRef:
    """The run of a `reference`."""
    return RunRef(*text.split("|"))
