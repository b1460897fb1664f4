"""What a row of an operator says: its operands, their roles, and what kernels accept of integer weights.

A float constant can become integers in three ways (:class:`Reading`): the operator has a *hybrid* kernel that
takes integer weights beside float activations; a DEQUANTIZE operator turns the integers back into floats
before a kernel that knows floats only; or, for a table that is only looked up, the operator works on the
integers and the floats are made from what it found. Which of them a file may use depends on the operator, on
the runtime that will load it, and on details of the operator at hand (:class:`Need`).

The rows are :mod:`tfl_rewrite.kernels.table`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import KW_ONLY, field

from tfl_rewrite.kernels.copies import CopyRule
from tfl_rewrite.kernels.integer import IntegerKernel, Target
from tfl_rewrite.kernels.runtimes import MicroKernel, Runtime, micro_kernels
from tfl_rewrite.kernels.shapes import Calls, ShapeRule
from tfl_rewrite.options.frozen import frozen


class Granularity(str, enum.Enum):
    """How many scales a quantized tensor has."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    BLOCK = "block"


class Reading(str, enum.Enum):
    """How one operator reads one weight."""

    HYBRID = "hybrid"
    LOOKUP = "lookup"
    DEQUANTIZE = "dequantize"


class Need(enum.Enum):
    """A condition that the operator at hand must meet; the value is its description."""

    FLOAT_BIAS = (
        "input 2 must be present and a float32 bias: CONV_2D fails in Prepare without one, DEPTHWISE_CONV_2D "
        "takes the process down (their float kernels do too); where it is absent, add one of zeros"
    )
    FLOAT_INPUT_OUTPUT = "the activation inputs and the outputs must be float32"
    FLOAT_OUTPUT = "the output must be float32"
    NO_SPARSITY = "the constant must not be stored sparse"
    NOT_SUBGRAPH_OUTPUT = (
        "the constant must not be an output of its subgraph: int8 would change the output's type, and for a "
        "DEQUANTIZE output that is a subgraph output XNNPACK returns garbage or fails"
    )
    ZERO_POINT_ZERO = "every zero point must be 0"
    NORMAL_SCALES = (
        "every scale must be finite and at least 2^-126: XNNPACK refuses a FULLY_CONNECTED with a "
        "zero or subnormal scale; an all-zero channel gets scale 1"
    )
    SAME_CHANNEL_AXIS = (
        "all operators that read the constant as a hybrid weight must agree on its channel axis, per-tensor "
        "scales included: XNNPACK's FULLY_CONNECTED spreads a single scale over axis 0 in place, and a "
        "BATCH_MATMUL on the same tensor then refuses it"
    )
    ALL_OR_NOTHING = (
        "all weight inputs of the operator must become int8 together, however small some are: a mixture "
        "fails in Prepare, or (UNIDIRECTIONAL_SEQUENCE_LSTM, SVDF) runs and returns garbage"
    )
    LSTM_KERNEL_FULL = "LSTMOptions.kernel_type must be FULL: the BASIC kernel takes no int8 weights"
    NO_DIAGONAL_RECURRENT = "the recurrent weights must be matrices, not diagonals stored as vectors"
    RIGHT_SIDE_CONSTANT = "the int8 operand must be the right one, and the left one a float activation"
    ONE_BATCH_AXIS = (
        "of the batch axes (all but the last two) at most one of the left operand and at most one of the "
        "right may be longer than 1, an unknown length counting as longer: with more, every resolver but "
        "XNNPACK mixes up the scales of the batches"
    )
    DEFAULT_WEIGHTS_FORMAT = "FullyConnectedOptions.weights_format must be DEFAULT, not SHUFFLED4x16INT8"
    INPUT_RANK_RECORDED = (
        "the file must record a shape of rank 1 or more for the activation input: the delegate is applied "
        "before shapes are known, and XNNPACK refuses the whole file for a rank of 0"
    )
    UNGROUPED = (
        "the filter must have as many input channels as the input: grouped filters need per-channel scales"
    )
    SCALES_DIFFER = (
        "unless the convolution is grouped or has one channel, two scales must differ: if all are equal, "
        "2.14 takes its per-tensor path, reads scale 0 and returns zeros; write that one scale per tensor"
    )

    @property
    def description(self) -> str:
        """The condition in words."""
        return self.value


class Shape(enum.Enum):
    """A condition on the shape of a weight; the value is its description."""

    ANY = "any shape"
    WHOLE_BYTES = "its rows must fill whole bytes: the kernel goes from row to row in bytes"
    WHOLE_BLOCKS = "it must be a matrix whose rows are whole blocks, of 32, 64, ... elements"


class ProductKind(enum.Enum):
    """How an operator multiplies its weight; the value says what the weight is."""

    DENSE = "[outputs, inputs]"
    CONVOLUTION = "[outputs, height, width, inputs of a group]"
    DEPTHWISE = "[1, height, width, outputs]"
    TRANSPOSED = "[outputs, height, width, inputs]"
    MATMUL = "the right operand, of any rank from 2 on; it may be no constant"
    RECURRENT = "matrices [units, inputs], for what comes in and for what was given out a step before"


class SideEffect(enum.Enum):
    """What an operator does beside computing its outputs."""

    NONE = "none"
    RANDOM = "gives other numbers from call to call; nothing else notices it"
    STATE = "reads or changes what outlives the call"
    UNKNOWN = "only its kernel knows"


class Squash(enum.Enum):
    """What an operator that saturates decides at once."""

    ROWS = "one thing a row of the last axis, by the differences in it"
    ELEMENTS = "one thing an element"


class Steep(enum.Enum):
    """Where the slope of an operator has no bound near zero.

    What is added there, however little, may be more than all else: a correction of 0.001 behind a mel filter
    bank, before LOG, took an audio classifier from 24.4 to 6.9 dB on other recordings (measured). EXP and
    softmax are not among them: what is added before them multiplies their outputs by about as much, large or
    small.
    """

    ALWAYS = "in input 0"
    DIVISION = "in both inputs; by a constant it is a straight line"
    POWER = "in both inputs; not where all exponents are constants of 1 and more"


@frozen
class Form:
    """One way in which an operator takes a weight that is stored as integers or float16.

    Attributes:
        reading: How it gets at it.
        dtype: Name in ``TensorType``.
        granularity: One scale for the tensor, one for each index along the operator's channel axis (any axis,
            for DEQUANTIZE), or float16 scales of blocks in a tensor of their own; None for a dtype without
            scales.
        version: The operator version to stamp, or the file's own if that is higher.
        first_runtime: The oldest runtime that computes this form correctly.
        source: Where this is known from.
        by_default: Whether the form may be used without being asked for by name.
        asymmetric_inputs: What to set ``asymmetric_quantize_inputs`` to; None where the options table of
            the operator has no such field. XNNPACK quantizes inputs asymmetrically whatever it says.
        note: What else is worth knowing before choosing it.
        needs: Conditions of this form, on top of those of its row.
        version_tells: Whether the stamped version keeps the file away from runtimes older than
            ``first_runtime``. Where it does not, an older runtime loads the file and goes wrong.
        full_range: Whether the kernel reads the lowest integer (-8, -2) right, with every resolver.
        shape: What must hold of the weight's shape.
    """

    reading: Reading
    dtype: str
    granularity: Granularity | None
    version: int
    first_runtime: Runtime
    source: str
    _: KW_ONLY
    by_default: bool = True
    asymmetric_inputs: bool | None = None
    note: str = ""
    needs: tuple[Need, ...] = ()
    version_tells: bool = True
    full_range: bool = False
    shape: Shape = Shape.ANY


@frozen(eq=False)
class OperatorRow:
    """All that is known of one builtin operator. What is not known has the value that promises nothing.

    Attributes:
        name: Name in ``BuiltinOperator``.
        inputs: How many inputs its kernel takes (``2``, ``2-3``, ``1+``, ``5,20,24``), as it checks or reads
            without a check; empty where that is not known.
        outputs: How many outputs.
        optional: Positions of inputs that may be absent (-1).
        options: Its options table; the member of the union has the same name.
        activation: Position of the float activation input; None where there is none.
        weights: Positions of the inputs that its hybrid kernel takes as integers. Absent optional ones are
            skipped.
        channel_axis: Axis of a weight over which it does not sum, from the front or (negative) from the back;
            for BATCH_MATMUL a mapping from ``adj_y`` to it.
        product: How it multiplies its weight; None where that is not modelled.
        summed: Positions of the weights over all of whose axes but one it sums.
        recurrent: Those of them that meet what it gave out a step before.
        biases: Positions of biases (``tflite/converter/ir/tfl_ops.td``): added once per output, so their
            error is not averaged away.
        table: Position of a table that it looks up without changing its integers.
        looks_up_rows: Whether what it looks up is rows, by their number.
        forms: How it takes weights that are stored smaller, best first.
        needs: Conditions on the operator at hand, whatever the hybrid form.
        source: Its kernel.
        note: What else is worth knowing.
        refusal: Why it must not be given integer weights beside floats, although it has weights.
        refused: Types of weights that its kernel refuses beside float activations (measured on 2.14 and 2.3).
        stamps: The version that a weight of a packed type asks for by itself; see :attr:`blockwise_stamp`.
        blockwise_stamp: The version that a weight with scales by block asks for; 0 for none.
        four_bit_from: Rows and columns from which on per-channel int4 weights have been read right since int4
            itself.
        constant_inputs: Inputs whose float constant must stay a constant in the file, and what goes wrong
            when the value comes from another operator.
        external_weight: Whether the runtime takes input 1 from a file beside the model
            (``litert/tools/externalize_tflite_flatbuffer.py``).
        elementwise: Whether it joins two operands element by element; their types must agree.
        commutes: Whether its two operands may change places.
        fuses: Whether its float kernel does what ``fused_activation_function`` says: RELU, RELU6 and
            RELU_N1_TO_1, never TANH, which kernels take for none or refuse.
        clamp: The range that it cuts numbers to, if it does nothing else.
        homogeneous: Whether its output takes a positive factor that a channel of input 0 takes, exactly.
        reshapes: Whether it gives out the numbers of input 0, in their order.
        squashes: What it decides, if it saturates.
        steep: Where its slope has no bound.
        same_scales: Whether its integer kernel copies numbers as if input and output had the same scale.
        effect: What it does beside computing; found in its kernel and among the effects that the converter
            declares (``converter/ir/tfl_ops.td``).
        effect_reason: That in words.
        only_reads: Whether it leaves the state that it meets as it is.
        calls: Whether it runs subgraphs, and does what those do.
        integer: How it computes in integers; None where it cannot, or nobody has measured it.
        declared: Whether its kernel looks at the shape that the file declares for its output (measured).
        copies: When it gives out an input as it is; None where it always computes.
        clamps: Between which bounds it cuts off what it is given, if it does nothing else.
        shape: What shapes it gives out, or whose, where it runs subgraphs; None where no rule is known.
        same_as: The builtin operator that computes the same of operands of one shape, and is older.
        one_sample: What its kernel does with several samples, if that is wrong (measured); or empty.
        handle: The options by which the resource that it makes goes (``tflite/kernels/var_handle.cc``,
            ``hashtable.cc``).
    """

    name: str
    inputs: str = ""
    outputs: str = ""
    _: KW_ONLY
    optional: tuple[int, ...] = ()
    options: str | None = None
    activation: int | None = 0
    weights: tuple[int, ...] = ()
    channel_axis: int | Mapping[bool, int] | None = None
    product: ProductKind | None = None
    summed: tuple[int, ...] = ()
    recurrent: tuple[int, ...] = ()
    biases: tuple[int, ...] = ()
    table: int | None = None
    looks_up_rows: bool = False
    forms: tuple[Form, ...] = ()
    needs: tuple[Need, ...] = ()
    source: str = ""
    note: str = ""
    refusal: str = ""
    refused: tuple[str, ...] = ()
    stamps: Mapping[str, int] = field(default_factory=dict)
    blockwise_stamp: int = 0
    four_bit_from: tuple[int, int] | None = None
    constant_inputs: Mapping[int, str] = field(default_factory=dict)
    external_weight: bool = False
    elementwise: bool = False
    commutes: bool = False
    fuses: bool = False
    clamp: tuple[float, float] | None = None
    homogeneous: bool = False
    reshapes: bool = False
    squashes: Squash | None = None
    steep: Steep | None = None
    same_scales: bool = False
    effect: SideEffect = SideEffect.NONE
    effect_reason: str = ""
    only_reads: bool = False
    calls: bool = False
    integer: IntegerKernel | None = None
    declared: bool = False
    copies: CopyRule | None = None
    clamps: tuple[float, float] | None = None
    shape: ShapeRule | Calls | None = None
    same_as: str = ""
    one_sample: str = ""
    handle: tuple[str, ...] = ()

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer of one activation, one weight and one bias: inputs 0, 1 and 2."""
        return self.product in (ProductKind.DENSE, ProductKind.CONVOLUTION, ProductKind.DEPTHWISE)

    @property
    def multiplies(self) -> bool:
        """Whether it multiplies one activation with one weight, without a memory."""
        return self.product is not None and self.product is not ProductKind.RECURRENT

    @property
    def reads_blocks(self) -> bool:
        """Whether its kernel reads scales by block."""
        return any(form.granularity is Granularity.BLOCK for form in self.forms)

    @property
    def micro(self) -> MicroKernel | None:
        """What TFLite Micro computes of it; None where it has no such kernel."""
        return micro_kernels().get(self.name)

    def widths(self, target: Target) -> tuple[int, ...]:
        """Returns the bits of activations for which a runtime has an integer kernel that computes right."""
        if self.integer is None:
            return ()
        known = tuple(width for width in (8, 16) if self.integer.version(width))
        if target is Target.OLD:
            return tuple(width for width in known if width in self.integer.old)
        if target is Target.MICRO:
            return tuple(width for width in known if self.micro and self.micro.takes(f"INT{width}"))
        return known

    def scales_axis(self, *, adj_y: bool = False) -> int | None:
        """Returns the axis of the per-channel scales that its kernel takes; None where it takes one scale.

        Args:
            adj_y: The operator's option of this name, where it has one.
        """
        if not any(form.granularity is Granularity.CHANNEL for form in self.forms):
            return None
        return self.channel_axis[adj_y] if isinstance(self.channel_axis, Mapping) else self.channel_axis

    def output_axis(self, position: int, rank: int) -> int | None:
        """Returns the axis of a weight over which it does not sum; None where it is no such weight.

        Args:
            position: Of the input that the weight is.
            rank: Of the weight.
        """
        axis = self.channel_axis
        if position not in self.summed or not isinstance(axis, int) or not axis < rank or rank < 2:
            return None
        return axis

    def forms_for(
        self,
        runtime: Runtime,
        dtype: str = "INT8",
        *,
        by_default: bool = True,
    ) -> tuple[Form, ...]:
        """Returns the forms that a runtime takes, best first; the caller drops those whose needs fail.

        Args:
            runtime: The oldest runtime that must load the file.
            dtype: Of the weight; a name in ``TensorType``.
            by_default: Leave out the forms that must be asked for by name.
        """
        return tuple(
            form
            for form in self.forms
            if form.dtype == dtype and form.first_runtime <= runtime and (form.by_default or not by_default)
        )

    def form(self, dtype: str, granularity: Granularity | None, runtime: Runtime) -> Form | None:
        """Returns how it takes weights of this kind on a runtime, or None where it does not."""
        return next(
            (form for form in self.forms_for(runtime, dtype) if form.granularity is granularity), None
        )
