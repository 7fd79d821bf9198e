"""Which dtype comes of an array and a scalar: by NumPy's rule, or by that of CuPy 13."""

import numpy as np


class Promotion:
    """Whether a NumPy scalar beside an array counts by its value alone, as in CuPy 13, and in NumPy before 2."""

    by_value = False


def promoted(values):
    """Return the arguments of a function of NumPy with scalars in the dtype that CuPy takes them in.

    CuPy 13 looks for the first loop to which all arguments can be cast, and of a scalar, NumPy's or Python's, the
    smallest dtype that holds its value counts, unless it is of a higher kind than every array.
    """
    arrays = [x for x in values if isinstance(x, np.ndarray)]
    scalars = [x for x in values if isinstance(x, (np.generic, bool, int, float))]
    if not (Promotion.by_value and arrays and scalars):
        return values
    kinds = {"b": 0, "u": 1, "i": 1, "f": 2}
    if max(kinds[x.dtype.kind] for x in arrays) < max(kinds[np.asarray(x).dtype.kind] for x in scalars):
        return values
    least = [np.min_scalar_type(x) for x in scalars]
    for place, (x, dtype) in enumerate(zip(scalars, least, strict=True)):
        if dtype.kind == "u" and x <= np.iinfo(dtype.char.lower()).max:
            least[place] = np.dtype(dtype.char.lower()) if any(y.dtype.kind == "i" for y in arrays) else dtype
    dtype = np.result_type(*(x.dtype for x in arrays), *least)
    return [x if isinstance(x, np.ndarray) or x is None else dtype.type(x) for x in values]
