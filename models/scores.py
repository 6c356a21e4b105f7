"""How scores are written: many at a time, at the version that was read."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Connection, Engine, Text, bindparam, cast, column, func, select
from sqlalchemy.dialects import postgresql, sqlite

from models.claims import Claim, Scored
from models.db import reading
from models.register import learn
from models.tables import Image, Score, Utc


def has_score(engine: Engine, uri: str, version: str, scorer_id: int) -> bool:
    """Whether an image has its score at a version."""
    query = select(Score.image_id).join(Image, Image.id == Score.image_id)
    query = query.where(Image.uri == uri, Image.version == version, Score.scorer_id == scorer_id)
    with reading(engine) as connection:
        return connection.execute(query).scalar() is not None


def register_learnt(connection: Connection, learnt: dict[int, str]) -> dict[int, int]:
    """The images at the versions that were learnt, by the id of the one whose version is unknown."""
    if not learnt:
        return {}
    rows = connection.execute(select(Image.id, Image.uri).where(Image.id.in_(learnt))).all()
    real_ids = learn(connection, {row.uri: learnt[row.id] for row in rows})
    return {row.id: real_ids[row.uri] for row in rows}


def _overwriting(insert: Any) -> Any:
    keys = ("image_id", "scorer_id")
    changed = {each.name: insert.excluded[each.name] for each in Score.__table__.columns if each.name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


_SAME = {"scorer_id": bindparam("scorer"), "job_id": bindparam("job"), "scored_at": bindparam("now", type_=Utc())}
_VARIES = [column(each.name, each.type) for each in Score.__table__.columns if each.name not in _SAME]
_DOCUMENT = cast(bindparam("rows", type_=Text()), JSON())
_ROWS = select(
    func.json_to_recordset(_DOCUMENT).table_valued(*_VARIES).render_derived(with_types=True), *_SAME.values()
)
_WRITE_EACH = _overwriting(sqlite.insert(Score))
_WRITE_ALL = _overwriting(postgresql.insert(Score).from_select([*(each.name for each in _VARIES), *_SAME], _ROWS))


_AS_JSON = '{"image_id":%d,"score":%.17g,"excellent":%.9g,"good":%.9g,"fair":%.9g,"poor":%.9g,"bad":%.9g,"dtype":"%s"}'
"""Nine digits tell a float32 from the next, seventeen any float; json.dumps takes five times as long."""


def write_scores(connection: Connection, claim: Claim, scored: Sequence[Scored], real_ids: Mapping[int, int]) -> None:
    by_id = {real_ids.get(result.image_id, result.image_id): result for result in scored}
    in_order = sorted(by_id.items())  # in one order for all, or two could wait for each other
    now = datetime.now(UTC)
    if connection.dialect.name == "postgresql":  # whose client would send them one by one
        same: dict[str, object] = {"scorer": claim.scorer_id, "job": claim.job_id, "now": now}
        rows = [_AS_JSON % (image_id, each.score, *each.logits, each.dtype) for image_id, each in in_order]
        connection.execute(_WRITE_ALL, {"rows": f"[{','.join(rows)}]", **same})
        return
    same = {"scorer_id": claim.scorer_id, "job_id": claim.job_id, "scored_at": now}
    words = ("excellent", "good", "fair", "poor", "bad")
    connection.execute(
        _WRITE_EACH,
        [
            {"image_id": image_id, "score": each.score, **dict(zip(words, each.logits, strict=True)),
             "dtype": each.dtype, **same}
            for image_id, each in in_order
        ],
    )  # fmt: skip
