"""Graphs over units, and the ways to build one."""
