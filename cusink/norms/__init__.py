"""Kernel products, norms and likelihoods of samples."""
