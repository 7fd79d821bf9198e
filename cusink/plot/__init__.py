"""Pictures of plans, transport, retrieval and convergence; ``pip install matplotlib``.

Every function draws into the axes `ax`, or into those of a new figure of pyplot, and returns them. A notebook shows
such a figure by itself; a script saves it with ``ax.figure.savefig(...)``, or shows it by ``matplotlib.pyplot.show()``.
pyplot keeps figures until they are closed: a script that draws many calls ``matplotlib.pyplot.close(ax.figure)``.
Arrays may be of any library.
"""

try:
    import matplotlib as matplotlib
except ImportError as error:
    raise ImportError("cusink.plot needs matplotlib: pip install matplotlib") from error

from cusink.plot.draw import convergence, plan, transport_lines
from cusink.plot.sheet import contact_sheet

__all__ = ["contact_sheet", "convergence", "plan", "transport_lines"]
