"""The kinds of findings, as rows: how bad, what it means, why that is so, and what to do."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType

from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, shown
from tfl_rewrite.passes.repair import FIXES


class Severity(str, enum.Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


@frozen
class Kind:
    """One kind of finding.

    Attributes:
        name: Stable; ``repair --only`` takes those that can be repaired.
        severity: ``error``: a runtime refuses the file, dies, or returns something else than the model's
            values. ``warning``: it does so on some runtimes, or something belonging to the file is missing.
            ``note``: nothing goes wrong.
        title: What it is.
        fact: What follows from it, and how that is known.
        source: Where the fact is from: a file of LiteRT, or a measurement on the runtimes that
            :mod:`tfl_rewrite.kernels.table` names.
        remedy: What to do where it cannot be repaired; IN and OUT stand for files.
    """

    name: str
    severity: Severity
    title: str
    fact: str
    source: str
    remedy: str = ""

    @property
    def repair(self) -> str:
        """What ``repair`` does about it; empty where it does nothing."""
        return next((fix.summary for fix in FIXES if fix.name == self.name), "")


@frozen
class Finding(JsonData):
    """One place where something is wrong.

    Attributes:
        kind: Name of its kind.
        where: Where in the file, in the words of the schema.
        detail: The numbers.
        saves: Bytes that the remedy saves, where that is its point.
        advice: What to do in this place, where that is not what its kind says.
        repairable: Whether ``repair`` settles this one; its kind may be repairable in other places only.
    """

    kind: str = field(metadata=shown("id"))
    where: str
    detail: str
    repairable: bool = False
    saves: int = 0
    advice: str = field(default="", metadata=LEFT_OUT)

    @property
    def row(self) -> Kind:
        """What is known of its kind."""
        return BY_NAME[self.kind]

    @property
    @computed(after="kind")
    def severity(self) -> Severity:
        """How bad it is."""
        return self.row.severity

    @property
    @computed(after="kind")
    def title(self) -> str:
        """What it is."""
        return self.row.title

    @property
    @computed("why", after="detail")
    def fact(self) -> str:
        """What follows from it."""
        return self.row.fact

    @property
    @computed(after="detail")
    def source(self) -> str:
        """Where that is from."""
        return self.row.source

    @property
    @computed(after="detail")
    def remedy(self) -> str:
        """What to do."""
        if self.repairable:
            return f"tfl-rewrite repair IN OUT --only {self.kind}"
        return self.advice or self.row.remedy


_CONVERT = "convert or quantize the model again"
_BUILDER = "tflite/core/interpreter_builder.cc, ParseQuantization"

KINDS: tuple[Kind, ...] = (
    # Quantization parameters.
    Kind(
        "quantized-dimension",
        Severity.ERROR,
        "the scales belong to an axis that does not exist or has another length",
        "the runtime refuses the whole file",
        _BUILDER,
        _CONVERT,
    ),
    Kind(
        "zero-points",
        Severity.ERROR,
        "there are not as many zero points as scales",
        "the runtime refuses the whole file",
        _BUILDER,
        _CONVERT,
    ),
    Kind(
        "zero-scale",
        Severity.ERROR,
        "a weight has scales of 0",
        "XNNPACK refuses the whole file, which then runs without it only",
        "tflite/delegates/xnnpack/xnnpack_delegate.cc, CheckAffineQuantization and CheckFp16Scale",
        _CONVERT,
    ),
    Kind(
        "odd-scale",
        Severity.ERROR,
        "a weight has scales that are negative, subnormal, infinite or NaN",
        "XNNPACK refuses the whole file; other kernels compute with them",
        "tflite/delegates/xnnpack/xnnpack_delegate.cc, CheckAffineQuantization",
        _CONVERT,
    ),
    Kind(
        "bias-scale",
        Severity.WARNING,
        "the scale of a bias is not that of its input times that of its weight",
        "kernels add the bias as if it were, so its values are not those that its scale says; off by more "
        "than 0.02 output steps, per-tensor kernels refuse the file, but XNNPACK of LiteRT runs it",
        "tflite/kernels/kernel_util.cc, GetQuantizedConvolutionMultipler; measured on 2.14 and 2.3",
        "quantize the model again; which of both was meant cannot be told",
    ),
    Kind(
        "zero-bias-scale",
        Severity.NOTE,
        "the scale of a bias of zeros is not that of its input times that of its weight",
        "zeros are zeros in any scale; a tool that checks the scales complains",
        "tflite/kernels/kernel_util.cc, GetQuantizedConvolutionMultipler",
    ),
    Kind(
        "int16-bias",
        Severity.ERROR,
        "the bias beside int16 activations is not of the type that the kernel reads",
        "LiteRT reads an int32 bias as int64, past its end: wrong outputs that depend on the layout of the "
        "file; DEPTHWISE_CONV_2D refuses it; TensorFlow Lite 2.14 goes by the type",
        "tflite/kernels/conv.cc, fully_connected.cc, transpose_conv.cc; measured on 2.14 and 2.3",
        _CONVERT,
    ),
    # Integer weights beside float activations.
    Kind(
        "hybrid-version",
        Severity.ERROR,
        "the operator version is older than the form of its weights",
        "a runtime that knows the version but not the form loads the file and misreads the weights: "
        "per-channel and blockwise scales read as 0, so it returns zeros or garbage without a word",
        "tflite/converter/tools/versioning/op_version.cc; measured on 2.14 and 2.3",
    ),
    Kind(
        "hybrid-untold",
        Severity.WARNING,
        "no operator version tells the form of these weights",
        "an older runtime loads the file and goes wrong: zeros without a word, or a refusal in Prepare",
        "measured on 2.14 and 2.3",
        "tfl-rewrite quantize-weights IN OUT --min-runtime VERSION, of the oldest runtime that is to run it",
    ),
    Kind(
        "depthwise-scales",
        Severity.ERROR,
        "a depthwise weight beside float activations has no scale for each channel on axis 3",
        "the kernel reads past the scales: garbage, NaN, different from run to run",
        "tflite/kernels/depthwise_conv.cc; measured on 2.14 and 2.3",
        _CONVERT,
    ),
    Kind(
        "equal-scales",
        Severity.WARNING,
        "all per-channel scales of a convolution weight are equal",
        "2.14 takes its per-tensor path, reads scale 0 and returns zeros",
        "tflite/kernels/conv.cc; measured on 2.14 and 2.3",
        "tfl-rewrite quantize-weights IN OUT --min-runtime 2.14",
    ),
    Kind(
        "hybrid-zero-point",
        Severity.ERROR,
        "an int8 weight beside float activations has a zero point other than 0",
        "XNNPACK refuses the whole file; other hybrid kernels take it as 0, so every value is off by it",
        "tflite/delegates/xnnpack/xnnpack_delegate.cc; measured on 2.3",
        _CONVERT,
    ),
    Kind(
        "hybrid-mixed",
        Severity.ERROR,
        "some weights of the operator are integers and some are floats",
        "it fails in Prepare, or (LSTM, SVDF) runs and returns garbage",
        "measured on 2.14 and 2.3",
        "quantize the float model again; all weights of such an operator change together",
    ),
    Kind(
        "hybrid-input-rank",
        Severity.WARNING,
        "the file records no shape for the input of an operator with integer weights",
        "XNNPACK, applied before shapes are known, refuses the whole file",
        "tflite/delegates/xnnpack/xnnpack_delegate.cc; measured on 2.3",
        "convert again with shapes recorded, or run without XNNPACK",
    ),
    Kind(
        "hybrid-unsupported",
        Severity.ERROR,
        "integer weights beside float activations where the kernel takes floats only",
        "the runtime refuses the file, or the kernel returns wrong values",
        "tflite/kernels of the operator",
        "quantize the float model with --scheme dequantize",
    ),
    Kind(
        "blockwise-read",
        Severity.ERROR,
        "an operator reads a blockwise constant that its kernel does not know how to read",
        "it takes the scale as 0: the kernel refuses the file, or ends the process",
        "tflite/kernels: only fully_connected.cc and embedding_lookup.cc read them; measured with ADD",
        _CONVERT,
    ),
    Kind(
        "mixed-types",
        Severity.ERROR,
        "an elementwise operator reads tensors of different types",
        "the kernel refuses them in Prepare; some runtimes end the process",
        "tflite/kernels/add.cc and its like: TF_LITE_ENSURE_TYPES_EQ; measured on 2.14 and 2.3",
        _CONVERT,
    ),
    Kind(
        "float16-read",
        Severity.ERROR,
        "a float kernel reads a float16 constant without a DEQUANTIZE before it",
        "the kernel refuses it in Prepare",
        "measured on 2.14 and 2.3",
        "convert again with a DEQUANTIZE before each float16 constant",
    ),
    Kind(
        "missing-bias",
        Severity.ERROR,
        "a convolution in floats has no bias",
        "CONV_2D fails in Prepare, DEPTHWISE_CONV_2D takes the process down",
        "tflite/kernels/conv.cc, depthwise_conv.cc; measured on 2.14 and 2.3",
        "convert again with a bias",
    ),
    Kind(
        "operands",
        Severity.ERROR,
        "an operator has not the operands that its kernel needs",
        "the kernel refuses the file in Prepare, or takes the process down",
        "Prepare of tflite/kernels of the operator",
        _CONVERT,
    ),
    Kind(
        "resize-scales",
        Severity.WARNING,
        "a RESIZE_BILINEAR has other quantization parameters at its output than at its input",
        "XNNPACK refuses the whole file; other kernels copy the integers, whose values then are others",
        "tflite/delegates/xnnpack/xnnpack_delegate.cc; measured on 2.3",
        "convert again, or run without XNNPACK",
    ),
    # Versions and operators.
    Kind(
        "min-runtime",
        Severity.WARNING,
        "min_runtime_version promises more than the operators keep",
        "a program that trusts it ships the file to runtimes that refuse it",
        "tflite/converter/tools/versioning/runtime_version.cc",
    ),
    Kind(
        "operator-version",
        Severity.ERROR,
        "an operator is of a version that no measured runtime has",
        "the runtime refuses the file",
        "tflite/converter/tools/versioning/runtime_version.cc",
        "use a newer runtime",
    ),
    Kind(
        "version-high",
        Severity.WARNING,
        "an operator is of a higher version than anything that it uses needs",
        "runtimes that have all that it uses refuse the file",
        "tflite/converter/tools/versioning/op_version.cc",
    ),
    Kind(
        "too-new",
        Severity.ERROR,
        "an operator, or the form of its weights, is newer than --min-runtime",
        "that runtime refuses the file or misreads it",
        "tflite/converter/tools/versioning/runtime_version.cc; measured on 2.14 and 2.3",
        "tfl-rewrite retarget IN OUT --runtime VERSION, or use a newer runtime",
    ),
    Kind(
        "custom-operator",
        Severity.WARNING,
        "a custom operator that the runtime does not bring",
        "the plain interpreter refuses the file; the application must register it",
        "tflite/core/kernels/register.cc",
        "register the operator, or link the delegate or library that brings it",
    ),
    Kind(
        "delegate-operator",
        Severity.WARNING,
        "a custom operator that only XNNPACK knows",
        "without that delegate the file is refused; 2.14 refuses it with it too",
        "tflite/delegates/xnnpack/xnnpack_delegate.cc; measured on 2.14 and 2.3",
        "run with XNNPACK of LiteRT",
    ),
    # Values.
    Kind(
        "float16-infinity",
        Severity.WARNING,
        "a float16 constant holds infinities",
        "values beyond 65504 became infinite when they were stored as float16; what they touch is inf or NaN",
        "IEEE 754 binary16",
        "convert again and clamp to 65504, or keep these constants in float32",
    ),
    Kind(
        "nan",
        Severity.WARNING,
        "a float constant holds NaN",
        "whatever is computed from it is NaN",
        "IEEE 754",
        "look at the training run: the weights are broken",
    ),
    Kind(
        "infinity",
        Severity.NOTE,
        "a float constant holds infinities",
        "as a mask (minus infinity before a softmax) that is meant; in a weight it is not",
        "IEEE 754",
        "look at what reads it",
    ),
    # The container.
    Kind(
        "offset-buffers",
        Severity.WARNING,
        "constants lie outside the FlatBuffer",
        "LiteRT and tflite-runtime 2.14 read them, TensorFlow Lite Micro does not",
        "Buffer.offset of the schema; tflite-micro#3196; measured on 2.14 and 2.3",
    ),
    Kind(
        "external-buffers",
        Severity.WARNING,
        "weights lie in files beside the model",
        "CompiledModel of LiteRT reads them; the classic Interpreter loads the file and has no weights",
        "tflite/core/interpreter_builder.cc; measured on 2.3",
        "tfl-rewrite join IN OUT",
    ),
    Kind(
        "external-missing",
        Severity.ERROR,
        "a weight file beside the model is missing or too short",
        "the model has no weights",
        "ExternalBuffer of the schema",
        "put the file beside the model",
    ),
    Kind(
        "zip-member",
        Severity.WARNING,
        "the metadata names a file that the appended ZIP does not hold",
        "a program that asks for the labels or vocabulary gets an error or nothing",
        "metadata_schema.fbs of tflite-support, AssociatedFile",
        "append the file again (zip -0 on the model), or write the metadata anew",
    ),
    Kind(
        "zip-compressed",
        Severity.WARNING,
        "a member of the appended ZIP is compressed",
        "the metadata library maps members and reads stored ones only",
        "tflite-support, ZipReadOnlyMemFile",
        "store it (zip -0)",
    ),
    Kind(
        "zip-offsets",
        Severity.WARNING,
        "the appended ZIP counts its offsets from its own start, not from that of the file",
        "readers that take offsets as they are do not find its members; some (Python's) make up for it",
        "APPNOTE.TXT 4.4.16 and 4.4.24",
        "append the files again (zip -0 on the model)",
    ),
    Kind(
        "zip-empty",
        Severity.NOTE,
        "the appended ZIP has no member",
        "nothing reads it",
        "APPNOTE.TXT 4.3.16",
        "none needed",
    ),
    Kind(
        "misaligned",
        Severity.WARNING,
        "vectors of 8-byte numbers do not start on a multiple of 8",
        "FlatBuffers asks for it; the measured runtimes read such files on x86-64, where the processor does "
        "not care, and what reads an aligned word elsewhere fails or is slow",
        "FlatBuffers internals, alignment; measured on 2.14 and 2.3",
    ),
    Kind(
        "unaligned",
        Severity.NOTE,
        "constants do not start on a multiple of 16",
        "the schema asks for it (force_align: 16) and not every converter keeps to it; the measured runtimes "
        "run such files",
        "Buffer.data of the schema; measured on 2.14 and 2.3",
    ),
    Kind(
        "dead-bytes",
        Severity.NOTE,
        "no offset reaches some bytes of the file, and they are not zero",
        "they are downloaded for nothing, unless something addresses them by their position",
        "counted",
        "tfl-rewrite compact IN OUT",
    ),
    Kind(
        "dead-content",
        Severity.NOTE,
        "operators, tensors or buffers that no output needs",
        "they cost space, and operators cost time",
        "counted by the pass itself",
        "tfl-rewrite remove-dead IN OUT",
    ),
    Kind(
        "duplicates",
        Severity.NOTE,
        "equal constants are stored more than once",
        "they cost space",
        "counted by the pass itself",
        "tfl-rewrite dedup IN OUT",
    ),
    # Structure.
    Kind(
        "structure",
        Severity.ERROR,
        "the file contradicts itself",
        "the runtime refuses it, or reads what is not there",
        "tflite/core/interpreter_builder.cc, tflite/core/subgraph.cc",
        _CONVERT,
    ),
    Kind(
        "fixed-in-place",
        Severity.NOTE,
        "the file holds something that a rewrite cannot carry over",
        "tfl-rewrite copies the file but refuses to change it",
        "read from the file",
        "rewrite the model before that step",
    ),
)
BY_NAME: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in KINDS})
UNASKED = frozenset(fix.name for fix in FIXES if not fix.asked)
"""What ``repair`` settles without being told to by name."""
