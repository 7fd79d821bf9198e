"""Distance matrices in memory and on disk."""
