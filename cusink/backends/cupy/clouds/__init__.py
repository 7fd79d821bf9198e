"""Costs between points in CuPy."""
