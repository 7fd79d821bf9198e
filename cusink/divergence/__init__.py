"""The Sinkhorn divergence."""
