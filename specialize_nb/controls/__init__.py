"""The same groups drawn at random."""
