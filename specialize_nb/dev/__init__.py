"""For tests and export only; not part of what is installed."""
