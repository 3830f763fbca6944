"""Until when the events of an ended run are waited for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["downgrade", "upgrade"]

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLE = "execution_runs"


def upgrade() -> None:
    """Step forward."""
    op.add_column(_TABLE, sa.Column("flush_until", sa.BigInteger()))


def downgrade() -> None:
    """Step back."""
    op.drop_column(_TABLE, "flush_until")
