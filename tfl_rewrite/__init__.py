"""Rewrites .tflite files: lossless core, int8 weights, every rewrite verified by the interpreter."""

from __future__ import annotations

__version__ = "0.1.0"
