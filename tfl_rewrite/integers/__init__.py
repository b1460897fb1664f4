"""Which operators of a model compute in integers, on which scales, and with which conversions."""
