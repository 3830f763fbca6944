"""Runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

__all__ = ["downgrade", "upgrade"]

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.String(200).with_variant(mysql.VARCHAR(200, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
_WORD = sa.String(64).with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
_OWNER = sa.String(255).with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
_TITLE = sa.String(500).with_variant(mysql.VARCHAR(500, charset="utf8mb4"), "mysql", "mariadb")
_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4"), "mysql", "mariadb")
_TABLE = "execution_runs"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        _TABLE,
        sa.Column("id", _ID, nullable=False),
        sa.Column("owner", _OWNER, nullable=False),
        sa.Column("kind", _WORD, nullable=False),
        sa.Column("title", _TITLE, nullable=False),
        sa.Column("status", _WORD, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("error", _TEXT),
        sa.Column("result", sa.JSON()),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("owner_epoch", sa.Integer(), nullable=False),
        sa.Column("producer", _WORD),
        sa.Column("cancel_requested_at", sa.BigInteger()),
        sa.Column("sealed", sa.Boolean(create_constraint=False), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_execution_runs"),
    )
    op.create_index("ix_execution_runs_created_at_id", _TABLE, ["created_at", "id"])
    op.create_index("ix_execution_runs_owner_created_at_id", _TABLE, ["owner", "created_at", "id"])
    op.create_index("ix_execution_runs_status_sealed_ended_at", _TABLE, ["status", "sealed", "ended_at"])


def downgrade() -> None:
    """Step back."""
    op.drop_table(_TABLE)
