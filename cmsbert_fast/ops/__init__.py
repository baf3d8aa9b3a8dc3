"""Operators, one folder each: what it means and checks (``api``), and its backends."""
