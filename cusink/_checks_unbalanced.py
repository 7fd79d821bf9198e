"""Checks of `reach`, in the manner of `cusink._checks`."""

import math
import numbers

from cusink._arrays import kind

RULE = "'reach' must be a positive number in the unit of 'C', None, or a pair of these for 'a' and 'b'"


def reach(value, method="auto"):
    """The prices (rho_a, rho_b) of both marginals, inf where one is to be met; None where both are."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{RULE}; got {len(pair)} values")
    prices = []
    for rho in pair:
        if rho is not None and (isinstance(rho, bool) or not isinstance(rho, numbers.Real)):
            raise TypeError(f"{RULE}; got {kind(rho)}")
        if rho is not None and not rho > 0:
            raise ValueError(f"{RULE}; got {rho}. A small reach leaves far mass behind, None transports all of it")
        prices.append(math.inf if rho is None else float(rho))
    if prices == [math.inf] * 2:
        return None
    if method == "scaling":
        raise ValueError("'method' must be 'auto' or 'log' for unbalanced transport; got 'scaling'. Leave it out")
    return tuple(prices)
