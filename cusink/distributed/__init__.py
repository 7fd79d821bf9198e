"""Distance matrices and nearest neighbours on Dask: many processes or machines."""

from cusink.distributed.graph import distance_matrix, nearest

__all__ = ["distance_matrix", "nearest"]
