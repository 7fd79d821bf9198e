"""Costs between points in NumPy."""
