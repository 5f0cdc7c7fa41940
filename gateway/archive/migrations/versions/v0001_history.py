"""Sessions, runs, messages, usage by day, tombstones."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes all tables and their indexes."""
    op.create_table(
        "sessions",
        sa.Column("tenant_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("user_id", sa.String, nullable=False),
        sa.Column("agent_id", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("status_ms", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.Text),
        sa.Column("on_detach", sa.String),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("active_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger, nullable=False),
        sa.Column("runs", sa.Integer, nullable=False),
        sa.Column("messages", sa.Integer, nullable=False),
        sa.Column("state", sa.Text),
        sa.Column("state_ms", sa.BigInteger, nullable=False),
    )
    by_user = ["tenant_id", "user_id"]
    op.create_index("sessions_by_creation", "sessions", [*by_user, "created_ms", "session_id"])
    op.create_index("sessions_by_activity", "sessions", [*by_user, "active_ms", "session_id"])
    op.create_index("sessions_by_age", "sessions", ["tenant_id", "active_ms"])
    op.create_table(
        "runs",
        sa.Column("tenant_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("run_id", sa.String, primary_key=True),
        sa.Column("agent_id", sa.String, nullable=False),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("claimed_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger, nullable=False),
        sa.Column("messages", sa.Integer, nullable=False),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("event", sa.Text, nullable=False),
    )
    op.create_index("runs_by_age", "runs", ["tenant_id", "ended_ms"])
    op.create_table(
        "messages",
        sa.Column("tenant_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("run_id", sa.String, primary_key=True),
        sa.Column("nth", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("json", sa.Text, nullable=False),
    )
    in_order = ["tenant_id", "session_id", "at_ms", "nth"]
    op.create_index("messages_in_order", "messages", in_order)
    op.create_table(
        "usage_daily",
        sa.Column("tenant_id", sa.String, primary_key=True),
        sa.Column("day", sa.String, primary_key=True),
        sa.Column("agent_id", sa.String, primary_key=True),
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("runs", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
    )
    op.create_table(
        "tombstones",
        sa.Column("tenant_id", sa.String, primary_key=True),
        sa.Column("user_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Removes all, and what is in it."""
    for table in ("tombstones", "usage_daily", "messages", "runs", "sessions"):
        op.drop_table(table)
