"""The FlatBuffers wire format, driven by a schema; knows nothing of TFLite."""
