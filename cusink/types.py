"""Names for the types that many signatures share. Shapes stand in docstrings."""

from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

Array: TypeAlias = Any  # a NumPy or a CuPy array: no static type covers both
HostArray: TypeAlias = npt.NDArray[Any]  # a NumPy array, where nothing else can come
Index: TypeAlias = slice | HostArray | Array  # of problems, rows or columns
ArrayModule: TypeAlias = ModuleType  # numpy or cupy, called xp

Value: TypeAlias = Literal["cost", "reg_cost", "entropic_cost"]
MatrixValue: TypeAlias = Literal["cost", "reg_cost", "entropic_cost", "divergence"]
Statistic: TypeAlias = Literal["max", "mean", "median"]  # of costs
Method: TypeAlias = Literal["auto", "log", "scaling"]
Tolerance: TypeAlias = float | Literal["auto"] | None
Overrelaxation: TypeAlias = Literal["auto"] | float | None
Order: TypeAlias = Literal["C", "F"]  # of arrays in memory
Axis: TypeAlias = Literal[0, 1]  # of one cost matrix, the axis that is summed over
Eps: TypeAlias = float | HostArray  # one for all problems, or in NumPy one for each (B,)
Reach: TypeAlias = tuple[float, float]  # prices (rho_a, rho_b) of the marginals, inf where one is to be met
