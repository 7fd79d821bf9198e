"""Pictures of plans, transport, retrieval and convergence; ``pip install "cusink[plot]"``.

Every function draws into the axes `ax`, or into those of a new figure, and returns them: ``ax.figure.savefig(...)``. A
new figure belongs to no window and needs no closing; to see it in one, pass ``ax=matplotlib.pyplot.gca()``. Arrays may
be NumPy's or CuPy's.
"""

try:
    import matplotlib as matplotlib
except ImportError as error:
    raise ImportError('cusink.plot needs matplotlib: pip install "cusink[plot]"') from error

from cusink.plot.draw import convergence, plan, transport_lines
from cusink.plot.sheet import contact_sheet

__all__ = ["contact_sheet", "convergence", "plan", "transport_lines"]
