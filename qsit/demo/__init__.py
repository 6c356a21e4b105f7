"""
The checkpoint behind `--model demo`: tiny, in the published layout, trained on synthetic distortions by the recipe in
training/. A demo, and no substitute for Q-SiT.
"""
