"""Reference networks, and training for modularity."""
