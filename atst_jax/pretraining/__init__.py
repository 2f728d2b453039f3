"""How a pre-training run lives: its recipe, the loop, what it watches for, and how it recovers.

In: a config and a workdir. Out: checkpoints and metrics, and exit code 0, 3 or 75.
Only `recipe`, `checks` and `describe` read the config; the rest takes what it needs by name.
"""
