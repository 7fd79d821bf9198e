"""Gradients of what a solve returned."""
