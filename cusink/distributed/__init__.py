"""Distance matrices and nearest neighbours on Dask: many processes or machines."""

from cusink.distributed.graph import distance_matrix, nearest
from cusink.distributed.index import Index

__all__ = ["Index", "distance_matrix", "nearest"]
