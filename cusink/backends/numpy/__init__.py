"""The operators in NumPy."""
