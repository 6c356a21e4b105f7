"""What the authors of Q-SiT published (arXiv 2503.09197), to be seen beside what is found here."""

import re

KNOWN = {
    "KonIQ": {"q-sit-mini": {"srcc": 0.914, "plcc": 0.882}, "q-sit": {"srcc": 0.924, "plcc": 0.925}},
    "SPAQ": {"q-sit-mini": {"srcc": 0.926, "plcc": 0.912}, "q-sit": {"srcc": 0.933, "plcc": 0.934}},
    "LIVE-C": {"q-sit-mini": {"srcc": 0.859, "plcc": 0.870}, "q-sit": {"srcc": 0.896, "plcc": 0.897}},
    "AGIQA-3K": {"q-sit-mini": {"srcc": 0.773, "plcc": 0.816}, "q-sit": {"srcc": 0.793, "plcc": 0.851}},
    "KADID": {"q-sit-mini": {"srcc": 0.756, "plcc": 0.621}, "q-sit": {"srcc": 0.765, "plcc": 0.699}},
}
"""Plain Spearman and Pearson correlations of raw scores, of models trained on SPAQ and KonIQ; by dataset and model."""

LLVISIONQA = {"q-sit-mini": 0.6488, "q-sit": 0.7565}
"""The share of right answers to the test questions of LLVisionQA."""

_NAMES = {
    "KonIQ": r"koniq([-_ ]?10k)?",
    "SPAQ": r"spaq",
    "LIVE-C": r"(live[-_ ]?c|clive)",
    "AGIQA-3K": r"agiqa[-_ ]?3k",
    "KADID": r"kadid([-_ ]?10k)?",
}


def dataset_in(file_name: str) -> str | None:
    """The dataset that a file name plainly names, as a word of its own; None when there is none, or more than one."""
    found = [
        dataset
        for dataset, pattern in _NAMES.items()
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", file_name.lower())
    ]
    return found[0] if len(found) == 1 else None
