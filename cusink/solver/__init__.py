"""Solve entropy-regularised transport."""
