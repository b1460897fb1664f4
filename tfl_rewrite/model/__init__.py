"""The typed model: objects instead of indices. Knows TFLite, not files."""
