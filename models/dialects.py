"""SQL that SQLite and PostgreSQL write differently."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Dialect, Float, Text, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine


class now_s(FunctionElement[float]):  # noqa: N801 -- reads like the SQL functions it stands beside
    """Seconds since 1970 by the database's clock, which all workers share."""

    type = Float(53)
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_sqlite(element: now_s, compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_postgresql(element: now_s, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


class Ids(TypeDecorator[Sequence[int]]):
    """Many ids as one parameter, so that the statement does not depend on their number."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind = ARRAY(BigInteger) if dialect.name == "postgresql" else Text()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: Sequence[int] | None, dialect: Dialect) -> Any:
        return value if dialect.name == "postgresql" else json.dumps(value)


class one_of(FunctionElement[Any]):  # noqa: N801 -- reads like the SQL functions it stands beside
    """Whether a column has one of `Ids`. Not a bool: SQLAlchemy would add `= 1`, which hides SQLite's index."""

    inherit_cache = True


@compiles(one_of, "sqlite")
def _one_of_sqlite(element: one_of, compiler: SQLCompiler, **_: Any) -> str:
    column, ids = map(compiler.process, element.clauses)
    return f"{column} IN (SELECT value FROM json_each({ids}))"  # noqa: S608 -- of names and placeholders


@compiles(one_of, "postgresql")
def _one_of_postgresql(element: one_of, compiler: SQLCompiler, **_: Any) -> str:
    column, ids = map(compiler.process, element.clauses)
    return f"{column} = ANY ({ids})"


def overwriting(insert: Any) -> Any:
    """Return an insert that replaces rows with the same key."""
    keys = [each.name for each in insert.table.primary_key]
    changed = {each.name: insert.excluded[each.name] for each in insert.table.columns if each.name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)
