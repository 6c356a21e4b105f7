"""The SQL of the guide, on both databases."""

from pathlib import Path

from sqlalchemy import Engine, text

from models.db import reading
from tests.docs.markdown import code_blocks

GUIDE = Path("docs/guides/sql.md")


def test_the_sql_of_the_guide_runs_and_finds_what_it_says(library: Engine) -> None:
    blurred, *others = code_blocks(GUIDE, "sql")
    with reading(library) as connection:
        rows = connection.execute(text(blurred)).all()
        assert [(row.uri, row.answer) for row in rows] == [("file:///p/000000.jpg", "low")]
        for query in others:
            connection.execute(text(query)).all()
