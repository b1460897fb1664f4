"""One file on disk: its container, what else it may be, writing it aside, reading and writing models."""
