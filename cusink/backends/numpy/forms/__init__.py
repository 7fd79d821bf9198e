"""Ways to iterate a stored cost in NumPy."""
