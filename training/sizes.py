"""Sizes in pixels that the recipe agrees on."""

TILE = 128
"""The side of a tile of the demo model."""
REFERENCE = 1024
"""The longer side of the photos for which severities are defined, and the largest side that the model sees."""
