"""What Alembic calls: run the steps on the connection that `sql/migrate.py` opened."""

from __future__ import annotations

from alembic import context

from tailrace.sql.models import Base

__all__: list[str] = []

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table="tailrace_version",
    # SQLite changes a column by writing the table anew.
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
