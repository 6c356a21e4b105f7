"""
The checkpoint of `--model demo`: tiny, in the published layout, and trained on synthetic distortions by the recipe in
training/. It is no substitute for Q-SiT.
"""
