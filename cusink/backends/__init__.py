"""The operators of each kind of cost in each array library."""
