"""The tables. A change of one comes with a migration (`sql/migrations/versions`); a test holds the two together."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Index, Integer, MetaData, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Base", "ExecutionRun"]


class Base(DeclarativeBase):
    """All tables of tailrace."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON}  # noqa: RUF012 - SQLAlchemy's own way


# MySQL compares without regard to case unless told otherwise, and run A is not run a.
_ID = String(200).with_variant(mysql.VARCHAR(200, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
_WORD = String(64).with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
_OWNER = String(255).with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
_TITLE = String(500).with_variant(mysql.VARCHAR(500, charset="utf8mb4"), "mysql", "mariadb")
_TEXT = Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4"), "mysql", "mariadb")


class ExecutionRun(Base):
    """One run. Times are Unix milliseconds. Its events are in the log, never here."""

    __tablename__ = "execution_runs"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    owner: Mapped[str] = mapped_column(_OWNER)
    kind: Mapped[str] = mapped_column(_WORD)
    title: Mapped[str] = mapped_column(_TITLE)
    status: Mapped[str] = mapped_column(_WORD)
    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[str | None] = mapped_column(_TEXT)
    result: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    # `metadata` is a word of SQLAlchemy's.
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    owner_epoch: Mapped[int] = mapped_column(Integer, default=0)
    producer: Mapped[str | None] = mapped_column(_WORD)
    """The name of the last claim: the same producer asking again has it already."""
    cancel_requested_at: Mapped[int | None] = mapped_column(BigInteger)
    sealed: Mapped[bool] = mapped_column(Boolean(create_constraint=False), default=False)
    flush_until: Mapped[int | None] = mapped_column(BigInteger)
    """Set: its producer ended it while events were on their way, which are waited for until then."""

    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "owner", "created_at", "id"),
        Index(None, "status", "sealed", "ended_at"),
    )
