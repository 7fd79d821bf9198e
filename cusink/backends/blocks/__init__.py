"""Costs between points that are made in blocks, reduced by the operators of stored costs of either library."""
