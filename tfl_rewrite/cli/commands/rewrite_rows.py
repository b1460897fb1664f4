"""The options of the commands that write a rewritten model."""

from __future__ import annotations

from dataclasses import replace

from tfl_rewrite.cli.options import (
    HOLDOUT,
    IN_OUT,
    TALKING,
    VERIFYING,
    WRITING,
    Command,
    Role,
    flag,
    value,
)

_SELECTING = (
    value(
        "--dtype",
        help="what weights become: int8 (default), int6 (an int4 and an int2 that add up), int4, int2, "
        "float16, or float32 to keep all but what --map names",
        choices=("int8", "int6", "int4", "int2", "float16", "float32"),
        default="int8",
    ),
    value(
        "--map",
        help="mixed precision by hand: rules between commas, such as 'conv.*=int4:block:32,logits=float32', "
        "or a TOML file. A rule matches names and operator types; the first that matches decides, --dtype "
        "the rest",
        default=None,
        metavar="REGEX=ENCODING,...|FILE.toml",
        role=Role.READ_MAP,
    ),
    value(
        "--scheme",
        help="hybrid: the runtime's dynamic-range kernels read the integers (smaller and faster). "
        "dequantize: integer constant, DEQUANTIZE, float kernel (smaller file, same memory as float; same "
        "speed with int8 and float16). auto (default): hybrid where a kernel takes it, dequantize elsewhere",
        choices=("auto", "hybrid", "dequantize"),
        default="auto",
    ),
    value(
        "--granularity",
        help="one scale per channel where the kernel takes it (default), per tensor, or per block of so many "
        "elements: block:32, block:64, block:128",
        default="channel",
        metavar="channel|tensor|block:N",
    ),
    value(
        "--min-elements",
        help="keep smaller constants as they are (default: 1024; in a small model fewer for weights of "
        "hybrid kernels: a 400th of all constant elements, at least 64)",
        type=int,
        default=None,
        metavar="N",
    ),
    value(
        "--include",
        help="rewrite only constants whose name, or the type of an operator that reads them, matches; "
        "repeatable",
        action="append",
        default=[],
        metavar="REGEX",
    ),
    value(
        "--exclude",
        help="keep constants whose name or reader's type matches; wins over --include; repeatable",
        action="append",
        default=[],
        metavar="REGEX",
    ),
    flag("--keep-first-last", help="keep the weights of the first and the last weighted operator"),
    value(
        "--effort",
        help="fast: scales that cover the largest value, nearest integers. balanced (default): scales of "
        "least squared error; with --inputs, integers chosen for what the weights are multiplied with. best: "
        "with --inputs, weight by weight, each for what it meets behind those before it (runs parts of the "
        "model for every weight)",
        choices=("fast", "balanced", "best"),
        default="balanced",
    ),
    flag(
        "--no-bias-correction",
        help="with --inputs: leave biases as they are, instead of letting them take back what rounding does "
        "to mean outputs",
    ),
    value(
        "--min-runtime",
        help="oldest TensorFlow Lite release that must compute OUT, such as 2.14 (default: the newest)",
        default=None,
        metavar="VERSION",
    ),
)

_CUTTING = (
    value(
        "--outputs",
        help="tensors that become the outputs: names, or #INDEX where names are missing or not unique; "
        "between commas, or repeated",
        action="append",
        default=None,
        metavar="NAME,...",
        dest="cut_outputs",
    ),
    value(
        "--inputs",
        help="tensors that become the inputs; what the outputs need must follow from them",
        action="append",
        default=None,
        metavar="NAME,...",
        dest="cut_inputs",
    ),
    value(
        "--signature",
        help="cut the subgraph of this signature (default: the main subgraph, or the only one that has "
        "all of the names)",
        default=None,
        metavar="KEY",
    ),
)

_STRIPPING = (
    value(
        "--strip",
        help="drop more: names (of tensors inside), min-max (ranges that the converter noted), metadata:NAME",
        action="append",
        default=[],
        metavar="WHAT,...",
    ),
)

_PURE_CUSTOM = (
    value(
        "--pure-custom",
        help="a custom operator that only computes outputs from inputs, so that it may go; repeatable",
        action="append",
        default=[],
        metavar="NAME",
    ),
)

# Nothing to tolerate where outputs must be equal to the bit.
_EXACT = tuple(row for row in VERIFYING if not {"--min-snr", "--max-abs-error"} & set(row.names))

# There, --inputs names tensors.
_EXACT_OF_A_PART = tuple(
    replace(row, names=("--verify-inputs",), extra={**row.extra, "dest": "inputs"})
    if "--inputs" in row.names
    else row
    for row in _EXACT
)

_ROUNDING = (
    value(
        "--steps",
        help="at most N steps between the smallest and the largest value of a channel or tensor, 16 N for "
        "vectors such as biases (default: 256, unless --min-snr is given)",
        type=int,
        default=None,
        metavar="N",
    ),
    value(
        "--granularity",
        help="which values share a step. auto (default): those of a channel of weights that are summed, else "
        "of the tensor; a search decides by measurement",
        choices=("auto", "channel", "tensor"),
        default="auto",
    ),
    value(
        "--effort",
        help="balanced (default): with --inputs, levels are chosen for what the weights are multiplied with. "
        "fast: by the weights alone",
        choices=("fast", "balanced"),
        default="balanced",
    ),
    flag("--int8", help="round int8 constants too: fewer different values, same type"),
    value(
        "--min-elements",
        help="keep smaller constants as they are (default: 16)",
        type=int,
        default=16,
        metavar="N",
    ),
)

# There, the ratio that the outputs must keep is what the steps are searched for.
_SEARCHING = tuple(
    replace(
        row,
        help="without --steps: search the coarsest rounding that keeps every output at this ratio or more, "
        "in dB; the file is run some hundred times. With --steps: refuse the result below it (default: 10)",
        extra={**row.extra, "default": None},
    )
    if "--min-snr" in row.names
    else row
    for row in (*HOLDOUT, *VERIFYING)
)

REWRITING = (
    Command(
        "quantize-weights",
        "store float weights as int8, int6, int4, int2 or float16 (lossy)",
        "Stores float weights smaller, with float activations: as int8 (default), or as --dtype and --map "
        "say. Runs the model before and after, and writes OUT only if every output keeps --min-snr. LOSSY: "
        "outputs change a little. Biases, small constants and what is quantized already stay as they are.",
        (
            ("files", IN_OUT),
            ("what to rewrite", _SELECTING),
            ("verification", (*HOLDOUT, *VERIFYING)),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "round-weights",
        "round constants so that the file compresses better (lossy)",
        "Rounds float constants to values that deflate well: the file keeps its size, its types and its "
        "speed, and the compressed download gets smaller. The model is run before and after. LOSSY: outputs "
        "change a little.",
        (
            ("files", IN_OUT),
            ("how to round", _ROUNDING),
            ("verification", _SEARCHING),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "dequantize",
        "turn integer and float16 weights back into float32",
        "Turns int8, uint8, int4, int2 and float16 weights into the float32 values that they stand for, for "
        "tools and delegates that want those; the file grows. What stands behind DEQUANTIZE stays equal to "
        "the bit; an operator that read integers itself no longer rounds its activations, so outputs change "
        "a little. Operators that compute in integers stay.",
        (
            ("files", IN_OUT),
            ("verification", VERIFYING),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "remove-dead",
        "remove what no output needs, or cut the model down to a part",
        "Removes operators that reach no output and have no effect of their own, and tensors, buffers, "
        "operator codes and subgraphs that nothing refers to. With --outputs or --inputs, a subgraph is "
        "cut first to the part between them. Outputs stay equal to the bit.",
        (
            ("files", IN_OUT),
            ("what to keep", (*_CUTTING, *_STRIPPING, *_PURE_CUSTOM)),
            ("verification", _EXACT_OF_A_PART),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "dedup",
        "store equal constants once and compute equal operators once",
        "Merges equal constant buffers, constant tensors that differ in nothing but the name, and operators "
        "that compute the same from the same. Outputs stay equal to the bit.",
        (
            ("files", IN_OUT),
            ("what to merge", _PURE_CUSTOM),
            ("verification", _EXACT),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "compact",
        "store the same content in fewer bytes",
        "Lays the file out anew: equal vectors, strings, tables and constants once, defaults and empty "
        "fields left out, offset buffers taken in while the file is under 2 GiB. Outputs stay equal to the "
        "bit; a file that would not get smaller is copied.",
        (
            ("files", IN_OUT),
            (
                "how to store it",
                (
                    *_STRIPPING,
                    value(
                        "--align",
                        help="constants of at least N bytes start on a multiple of N in the file, such as "
                        "4096 for pages that are mapped; the file may grow then (default: 16)",
                        type=int,
                        default=16,
                        metavar="N",
                    ),
                ),
            ),
            ("verification", _EXACT),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
    Command(
        "run",
        "apply several passes with one read, one write and one verification",
        "Applies passes in the order given, or a preset. Outputs are judged once, for the whole: by "
        "--min-snr if a pass is lossy, else bit by bit. 'tfl-rewrite passes' lists passes, their options and "
        "the presets.",
        (
            ("files", IN_OUT),
            (
                "what to do",
                (
                    value(
                        "--pass",
                        help="a pass, with options after a colon: "
                        "quantize-weights:scheme=dequantize,exclude=^a+^b; repeatable, in order. A comma or "
                        "a plus sign in a value is written twice",
                        action="append",
                        default=[],
                        dest="passes",
                        metavar="NAME[:OPTION=VALUE,...]",
                        role=Role.READ_PASSES,
                    ),
                    value("--preset", help="lossless or small", metavar="NAME", default=None),
                ),
            ),
            ("verification", (*HOLDOUT, *VERIFYING)),
            ("writing", WRITING),
            ("talk", TALKING),
        ),
    ),
)
