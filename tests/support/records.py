"""A result, a job's progress, and a file name that attacks a terminal."""

from datetime import UTC, datetime

from models.queries.progress import Progress
from models.queries.results import Result
from qsit.states import JobState

HOSTILE = "\x1b]0;owned\x07\nfake 0.99 Excellent \u202e\u2028\x9b31m.jpg"
"""Sets a terminal's title and colour, reverses the text behind it, and forges a row."""

RESULT = Result(
    image_id=1,
    scorer_id=1,
    uri="file:///p/a%20b.jpg",
    version="1",
    score=0.25,
    logits=(0.0, 1.0, 2.0, 3.0, 4.0),
    model="zhangzicheng/q-sit-mini",
    revision="abc",
    procedure="rating-1/upright-1",
    dtype="float16",
    scored_at=datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
    job=7,
)

PROGRESS = Progress(
    job=7,
    name=None,
    state=JobState.FINISHED,
    model="m",
    revision="r",
    procedure="p",
    is_listed=True,
    skipped=100,
    skipped_failed=3,
    queued=0,
    running=0,
    scored=1087,
    failed=10,
    cancelled=0,
    max_failed="0",
    private=False,
    is_being_listed=False,
    created_at=RESULT.scored_at,
    finished_at=RESULT.scored_at,
)
