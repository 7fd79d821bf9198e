"""The operators in CuPy, on the kernels of kernels/*.cu."""
