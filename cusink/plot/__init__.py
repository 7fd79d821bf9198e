"""Pictures: plans, transport lines, contact sheets, convergence."""

from cusink.plot.draw import contact_sheet, convergence, plan, transport_lines

__all__ = ["contact_sheet", "convergence", "plan", "transport_lines"]
