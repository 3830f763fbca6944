"""Alembic's environment (`env.py`) and its steps (`versions/`); `sql/migrate.py` runs them."""
