"""Custom operators that are known, and what their options may hold."""

from __future__ import annotations

BUILT_IN_CUSTOM = (
    "NumericVerify",
    "Mfcc",
    "AudioSpectrogram",
    "TFLite_Detection_PostProcess",
    "aeq.hadamard_rotation",
)
"""Custom operators that the runtime registers itself (``tflite/core/kernels/register.cc``)."""
DELEGATE_CUSTOM = ("Convolution2DTransposeBias", "MaxPoolingWithArgmax2D", "MaxUnpooling2D")
"""Custom operators that only XNNPACK takes (``xnnpack_delegate.cc``)."""
KNOWN_CUSTOM = frozenset((*BUILT_IN_CUSTOM, *DELEGATE_CUSTOM, "edgetpu-custom-op"))
"""Custom operators whose options are known to hold no position in the file."""
DISPATCH = "DISPATCH_OP"
"""The custom operator that addresses compiled code by its position in the file (LiteRT, ``litert/core``)."""
