"""Estimators for scikit-learn; ``pip install scikit-learn``.

They take what scikit-learn's estimators take, NumPy arrays, lists, data frames and `scipy.sparse` rows, and work in
pipelines, grid searches and `sklearn.base.clone`.
"""

try:
    import sklearn as sklearn
except ImportError as error:
    raise ImportError("cusink.sklearn needs scikit-learn: pip install scikit-learn") from error

from cusink.sklearn.neighbors import SinkhornNeighborsTransformer
from cusink.sklearn.transport import SinkhornTransport

__all__ = ["SinkhornNeighborsTransformer", "SinkhornTransport"]
