"""Pixels to scores and answers: the model itself."""
