"""The figures that the authors of Q-SiT published (arXiv 2503.09197)."""

CORRELATIONS = {
    "KonIQ": {"q-sit-mini": {"srcc": 0.914, "plcc": 0.882}, "q-sit": {"srcc": 0.924, "plcc": 0.925}},
    "SPAQ": {"q-sit-mini": {"srcc": 0.926, "plcc": 0.912}, "q-sit": {"srcc": 0.933, "plcc": 0.934}},
    "LIVE-C": {"q-sit-mini": {"srcc": 0.859, "plcc": 0.870}, "q-sit": {"srcc": 0.896, "plcc": 0.897}},
    "AGIQA-3K": {"q-sit-mini": {"srcc": 0.773, "plcc": 0.816}, "q-sit": {"srcc": 0.793, "plcc": 0.851}},
    "KADID": {"q-sit-mini": {"srcc": 0.756, "plcc": 0.621}, "q-sit": {"srcc": 0.765, "plcc": 0.699}},
}
"""Spearman and Pearson correlations of unfitted scores, by dataset and model. The models were trained on SPAQ and
KonIQ."""

LLVISIONQA = {"q-sit-mini": 0.6488, "q-sit": 0.7565}
"""The share of right answers to the test questions of LLVisionQA, by model."""
