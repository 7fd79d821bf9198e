"""Costs: arrays, points and grids, and what the operators take of them."""
