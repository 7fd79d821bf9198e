"""Clouds that move down the gradient of a loss."""
