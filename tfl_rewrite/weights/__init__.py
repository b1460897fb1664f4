"""The engine of the passes that store weights otherwise."""
