"""Pairs of measures with supports of unequal sizes, solved in batches of like sizes."""
