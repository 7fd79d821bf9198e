"""When a problem stops, and how far each of its updates goes: rules that host and device share."""
