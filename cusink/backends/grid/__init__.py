"""Costs that are sums over the axes of a grid, on any array module."""
