"""Distance matrices and nearest neighbours on Dask: many processes or machines."""

from cusink.distributed.graph import distance_matrix
from cusink.distributed.index import Index
from cusink.distributed.nearest import nearest

__all__ = ["Index", "distance_matrix", "nearest"]
