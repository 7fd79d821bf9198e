"""What ``scripts/mutate`` does; see ``run.py``."""
