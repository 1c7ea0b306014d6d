"""Partitions of units, the ways to find one, and whether there is anything to find."""
