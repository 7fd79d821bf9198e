"""Pairs of documents and of ragged clouds in NumPy."""
