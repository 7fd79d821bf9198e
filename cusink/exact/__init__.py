"""Transport without regularisation, where it has a closed form."""
