"""The operators of distances between the cells of a grid that are no sums over its axes, for CuPy arrays: in blocks."""

from cusink.backends.blocks.operators import block_operators
from cusink.backends.cupy.blocks import ARRAYS, Iteration
from cusink.backends.cupy.unbalanced import STEPS
from cusink.costs.cells import EuclideanCosts
from cusink.costs.operators import Operators

OPERATORS: Operators[EuclideanCosts] = block_operators(ARRAYS, Iteration, STEPS)
