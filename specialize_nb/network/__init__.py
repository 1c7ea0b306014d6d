"""A model as units and what joins them: tracing, wiring, what layers put out."""
