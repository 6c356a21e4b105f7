"""The recipe of the demo checkpoint: photos, lists, a trainer, figures. See README.md beside this file."""
