"""Sinkhorn iterations between the cells of a grid in NumPy: the forms of `cusink._iteration_numpy`, axis by axis."""

import numpy as np

from cusink import _iteration_numpy
from cusink._grid_kernel_numpy import NumpyGridKernel
from cusink._log_domain_numpy import LogDomain
from cusink._reductions_grid_numpy import Reductions
from cusink._repeated_softmin_grid_numpy import LineProducts
from cusink._shared_kernel_numpy import SharedKernel


class Iteration(_iteration_numpy.Iteration):
    """Problems under way, see `cusink._ops`."""

    def _forms(self, C, dtype, eps, method):
        if method == "log":
            return [LogDomain(C, dtype, eps, Reductions)]
        kernels = [NumpyGridKernel(C, precision, eps) for precision in dict.fromkeys((dtype, np.dtype(np.float64)))]
        forms = [SharedKernel(kernel) for kernel in kernels]
        if method == "auto":
            wide = C.astype(np.float64)
            forms.append(LogDomain(wide, np.float64, eps, Prepared(wide, eps)))
        return forms


class Prepared(Reductions):
    """`Reductions` of one cost and eps with the certified products of `LineProducts`."""

    def __init__(self, C, eps):
        self.products = LineProducts(C, eps)

    def softmin(self, C, logits, eps, axis):
        return self.products(logits, axis)
