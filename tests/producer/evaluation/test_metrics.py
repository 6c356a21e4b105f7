"""The four figures against scipy, and input for which they cannot be computed."""

import random
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from producer.evaluation.metrics import Agreement, import_stats, measure_agreement
from qsit.errors import QsitError


def make_columns(count: int, *, ties: bool) -> tuple[list[float], list[float]]:
    chance = random.Random(count)
    scores = [chance.random() for _ in range(count)]
    opinions = [100 * score + chance.gauss(0, 20) for score in scores]
    if ties:
        scores, opinions = [round(score, 1) for score in scores], [float(round(opinion, -1)) for opinion in opinions]
    return scores, opinions


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [3, 10, 1000])
def test_the_figures_equal_those_of_scipy(count: int, ties: bool) -> None:
    scores, opinions = make_columns(count, ties=ties)

    found = measure_agreement(scores, opinions)

    assert found.n == count
    assert found.srcc == stats.spearmanr(scores, opinions).statistic
    assert found.plcc == stats.pearsonr(scores, opinions).statistic
    assert found.krcc == stats.kendalltau(scores, opinions).statistic
    line = stats.linregress(scores, opinions)
    left = np.asarray(opinions) - (line.slope * np.asarray(scores) + line.intercept)
    assert found.rmse == pytest.approx(float(np.sqrt(np.mean(left**2))), rel=1e-12)
    assert found.notes == ()


def test_lower_can_be_better() -> None:
    scores, opinions = make_columns(100, ties=True)

    found = measure_agreement(scores, [-opinion for opinion in opinions], lower_is_better=True)

    assert found == measure_agreement(scores, opinions)
    assert found.srcc is not None
    assert found.srcc > 0


@pytest.mark.parametrize(
    ("scores", "opinions", "expected"),
    [
        ([], [], Agreement(0, notes=("SRCC, PLCC, KRCC and RMSE need at least two photos, found 0",))),
        ([0.5], [3.0], Agreement(1, notes=("SRCC, PLCC, KRCC and RMSE need at least two photos, found 1",))),
        (
            [0.1, 0.2],
            [3.0, 3.0],
            Agreement(2, notes=("SRCC, PLCC, KRCC and RMSE cannot be computed: every label is 3",)),
        ),
        (
            [0.5, 0.5, 0.5, 0.5],
            [1.0, 3.0, 3.0, 1.0],
            Agreement(4, rmse=1.0, notes=("SRCC, PLCC and KRCC cannot be computed: every score is 0.5",)),
        ),
        ([0.1, 0.9], [1.0, 3.0], Agreement(2, 1.0, 1.0, 1.0, 0.0)),
    ],
)
def test_impossible_figures_are_none(scores: list[float], opinions: list[float], expected: Agreement) -> None:
    found = measure_agreement(scores, opinions)

    assert found.notes == expected.notes
    for name in ("n", "srcc", "plcc", "krcc", "rmse"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)


def test_overflow_is_reported() -> None:
    found = measure_agreement([0.1, 0.2, 0.3], [1e308, -1e308, 1.5e308])

    assert found.srcc == pytest.approx(0.5)
    assert found.rmse is None
    assert found.notes[0].endswith("cannot be computed: the numbers are too large, or differ by too little")


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)

    with pytest.raises(QsitError, match=r"pip install 'qsit\[evaluate\]'"):
        import_stats()


def test_scipy_is_imported_only_for_figures() -> None:
    code = (
        "import sys, producer.cli.commands, producer.submit, producer.score, producer.evaluation.scores,"
        "producer.evaluation.answers, models.queries.results;"
        "print(sorted({'scipy', 'torch', 'transformers'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
