"""What the losses of `cusink.torch` and `cusink.jax` share: checks, and the work on NumPy or CuPy arrays."""
