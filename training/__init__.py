"""The recipe of the demo checkpoint: photos, lists, training, figures. README.md describes it."""
