"""How well scores agree with what people think: the usual four figures, computed by scipy."""

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
    Of so many photos: Spearman's, Pearson's and Kendall's (tau-b) correlation, and the root of the mean squared error
    of the least-squares line from score to opinion, in the opinions' unit. None: cannot be computed, notes say why.
    """

    n: int
    srcc: float | None = None
    plcc: float | None = None
    krcc: float | None = None
    rmse: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_figures(self) -> bool:
        """Whether anything could be computed."""
        return any(figure is not None for figure in (self.srcc, self.plcc, self.krcc, self.rmse))


def statistics() -> ModuleType:
    """
    scipy.stats, which takes a second to import and is an extra.

    Raises:
        QsitError: when it is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise QsitError(f"the figures are computed by scipy: pip install 'qsit[evaluate]' ({error})") from error
    module: ModuleType = stats
    return module


def agreement(scores: Sequence[float], opinions: Sequence[float], *, lower_is_better: bool = False) -> Agreement:
    """The agreement of two columns. With `lower_is_better`, correlations are with the opinions turned round."""
    n = len(scores)
    if n < 2:
        return Agreement(n, notes=(f"{_listed(FIGURES)} need two photos at least: there {'is 1' if n else 'is none'}",))
    if len(set(opinions)) == 1:
        return Agreement(n, notes=(f"{_listed(FIGURES)} cannot be computed: every label is {opinions[0]:g}",))
    notes: list[str] = []
    correlations: list[float | None] = [None, None, None]
    if len(set(scores)) == 1:
        notes.append(f"{_listed(FIGURES[:3])} cannot be computed: every score is {scores[0]:g}")
    else:
        turned = [-opinion for opinion in opinions] if lower_is_better else opinions
        stats = statistics()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns that hardly vary, or overflow: then a figure is not finite
            methods = (stats.spearmanr, stats.pearsonr, stats.kendalltau)
            correlations = [_finite(method(scores, turned).statistic) for method in methods]
    srcc, plcc, krcc = correlations
    figures = (srcc, plcc, krcc, _finite(_rmse(scores, opinions)))
    lost = [name for name, figure in zip(FIGURES, figures, strict=True) if figure is None]
    if lost and not notes:
        notes.append(f"{_listed(lost)} cannot be computed: the numbers are too large, or differ by too little")
    return Agreement(n, *figures, tuple(notes))


def _rmse(scores: Sequence[float], opinions: Sequence[float]) -> float:
    with np.errstate(all="ignore"):
        x, y = np.asarray(scores) - np.mean(scores), np.asarray(opinions) - np.mean(opinions)
        slope = x @ y / (x @ x) if x.any() else 0.0  # of scores that are all the same, a flat line
        return float(np.sqrt(np.mean((y - slope * x) ** 2)))


def _finite(figure: float) -> float | None:
    return float(figure) if math.isfinite(figure) else None


def _listed(figures: Sequence[str]) -> str:
    names = [figure.upper() for figure in figures]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
