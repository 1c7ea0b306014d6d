"""Layers as wholes: how far apart, and in which groups."""
