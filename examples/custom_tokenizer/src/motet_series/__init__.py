"""Time series for motet, a plug-in: see `series`."""
