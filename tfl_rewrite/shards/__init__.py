"""A model in several files: parts that any host can serve, and LiteRT's own external buffers."""
