"""The tables, as the code uses them; `migrations` makes them so. Times are milliseconds.

JSON is text that nobody here reads: PostgreSQL's `jsonb` refuses escaped NULs, which JSON allows.
No foreign keys: entries of the journals may come in any order, and may come again.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text

VERSION = "0001"
"""The newest migration. Their names grow: an older database can be told from a newer one."""

metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("session_id", String, primary_key=True),
    Column("user_id", String, nullable=False),
    Column("agent_id", String, nullable=False),
    Column("status", String, nullable=False),
    # When that status began; 0 while all that is known of the session is its runs.
    Column("status_ms", BigInteger, nullable=False),
    # What it was created with; null until the entry comes that says so.
    Column("metadata", Text),
    Column("on_detach", String),
    Column("created_ms", BigInteger, nullable=False),
    Column("active_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column("runs", Integer, nullable=False),
    Column("messages", Integer, nullable=False),
    # The shared state after the run that ended at `state_ms`.
    Column("state", Text),
    Column("state_ms", BigInteger, nullable=False),
)
# Lists by creation and by last activity, a page at a time; retention takes the longest silent.
Index(
    "sessions_by_creation",
    sessions.c.tenant_id,
    sessions.c.user_id,
    sessions.c.created_ms,
    sessions.c.session_id,
)
Index(
    "sessions_by_activity",
    sessions.c.tenant_id,
    sessions.c.user_id,
    sessions.c.active_ms,
    sessions.c.session_id,
)
Index("sessions_by_age", sessions.c.tenant_id, sessions.c.active_ms)

runs = Table(
    "runs",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("session_id", String, primary_key=True),
    Column("run_id", String, primary_key=True),
    Column("agent_id", String, nullable=False),
    Column("task", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("code", String, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("claimed_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column("messages", Integer, nullable=False),
    # As the agent reported it; null is unknown.
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("event", Text, nullable=False),
)
Index("runs_by_age", runs.c.tenant_id, runs.c.ended_ms)

messages = Table(
    "messages",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("session_id", String, primary_key=True),
    Column("run_id", String, primary_key=True),
    Column("nth", Integer, primary_key=True),
    # The end of its run.
    Column("at_ms", BigInteger, nullable=False),
    Column("json", Text, nullable=False),
)
Index(
    "messages_in_order",
    messages.c.tenant_id,
    messages.c.session_id,
    messages.c.at_ms,
    messages.c.nth,
)

# Names nobody, so it outlives erasure and retention. A run counts in each model that it used.
usage_daily = Table(
    "usage_daily",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("day", String, primary_key=True),
    Column("agent_id", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("runs", BigInteger, nullable=False),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
)

# What was erased. An empty session id: all of the user that was begun up to then.
tombstones = Table(
    "tombstones",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("user_id", String, primary_key=True),
    Column("session_id", String, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
)
