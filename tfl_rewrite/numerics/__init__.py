"""Arrays in, arrays out: scales, rounding, packing. No FlatBuffers here."""
