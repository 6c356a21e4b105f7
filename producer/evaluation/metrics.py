"""How well scores agree with opinions: four figures, computed by scipy."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from qsit.errors import QsitError

FIGURES = ("srcc", "plcc", "krcc", "rmse")


@dataclass(frozen=True)
class Agreement:
    """
    The agreement of `n` scores and opinions. A figure is None when it cannot be computed; `notes` says why.

    srcc, plcc, krcc: Spearman's, Pearson's and Kendall's (tau-b) correlation.
    rmse: root mean squared error of the least-squares line from score to opinion, in the unit of the opinions.
    """

    n: int
    srcc: float | None = None
    plcc: float | None = None
    krcc: float | None = None
    rmse: float | None = None
    notes: tuple[str, ...] = ()


def import_stats() -> ModuleType:
    """Import scipy.stats, which takes a second. Raises QsitError without scipy, which an extra installs."""
    try:
        from scipy import stats
    except ImportError as error:
        raise QsitError(f"the figures need scipy: pip install 'qsit[evaluate]' ({error})") from error
    module: ModuleType = stats
    return module


def measure_agreement(
    scores: Sequence[float], opinions: Sequence[float], *, lower_is_better: bool = False
) -> Agreement:
    """Compute the agreement of scores and opinions. With `lower_is_better`, opinions are negated for correlations."""
    n = len(scores)
    if n < 2:
        return Agreement(n, notes=(f"{_join_names(FIGURES)} need at least two photos, found {n}",))
    if len(set(opinions)) == 1:
        return Agreement(n, notes=(f"{_join_names(FIGURES)} cannot be computed: every label is {opinions[0]:g}",))
    notes: list[str] = []
    correlations: list[float | None] = [None, None, None]
    if len(set(scores)) == 1:
        notes.append(f"{_join_names(FIGURES[:3])} cannot be computed: every score is {scores[0]:g}")
    else:
        signed = [-opinion for opinion in opinions] if lower_is_better else opinions
        stats = import_stats()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about overflow and nearly constant input; the figure is then not finite
            methods = (stats.spearmanr, stats.pearsonr, stats.kendalltau)
            correlations = [_finite_or_none(method(scores, signed).statistic) for method in methods]
    srcc, plcc, krcc = correlations
    figures = (srcc, plcc, krcc, _finite_or_none(_compute_rmse(scores, opinions)))
    lost = [name for name, figure in zip(FIGURES, figures, strict=True) if figure is None]
    if lost and not notes:
        notes.append(f"{_join_names(lost)} cannot be computed: the numbers are too large, or differ by too little")
    return Agreement(n, *figures, tuple(notes))


def _compute_rmse(scores: Sequence[float], opinions: Sequence[float]) -> float:
    with np.errstate(all="ignore"):
        x, y = np.asarray(scores) - np.mean(scores), np.asarray(opinions) - np.mean(opinions)
        slope = x @ y / (x @ x) if x.any() else 0.0  # equal scores have a flat line
        return float(np.sqrt(np.mean((y - slope * x) ** 2)))


def _finite_or_none(figure: float) -> float | None:
    return float(figure) if math.isfinite(figure) else None


def _join_names(figures: Sequence[str]) -> str:
    names = [figure.upper() for figure in figures]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
