"""prune: weights that matter least become zero, and the others take over their part.

Promise: a share of the values of the float weights that operators multiply with becomes zero, more of those
where that costs less; types, shapes and operators stay, unless the sparse form is asked for. With real inputs
weights go by what losing them does to the products, and those that stay are fitted anew
(:mod:`tfl_rewrite.numerics.pruning`); else the smallest go. Zeros make a deflated download smaller; stored
sparse (``encode=sparse``) they make the file smaller, where that is so, behind a DENSIFY. They are no faster:
kernels multiply with zeros, too. Biases, small constants, tables, integers and what several operators read in
different ways stay. What has as many zeros as were asked for is left alone, so a second run changes nothing.
Outputs may differ within the tolerance of verification.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.base import Context, Effect, Pass, PassResult, Skip
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UsageError
from tfl_rewrite.judge.settings import SNR_BOUNDS
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.graph import Use
from tfl_rewrite.model.ir import Model, SubGraph
from tfl_rewrite.numerics.grids import deflated
from tfl_rewrite.numerics.pruning import divided
from tfl_rewrite.options.json_data import LEFT_OUT, JsonData, computed, finite, shown, spread
from tfl_rewrite.options.option import Taken, check_options, option
from tfl_rewrite.options.patterns import REGEXES, compile_all
from tfl_rewrite.weights.candidates import EXCLUDE, INCLUDE, Selection, stays
from tfl_rewrite.weights.grids import Constant, find_constants
from tfl_rewrite.weights.payloads import PrunedPayload
from tfl_rewrite.weights.rounders import Effort, Fitting, fitting_of
from tfl_rewrite.weights.sparse import OVERHEAD_NBYTES, make_sparse, sparse_form

SPARSITY = 0.5
"""The share of zeros, where nothing else is asked for."""

LEAST_ELEMENTS = 64

_DEFLATED = 0.92
"""About what deflate leaves of float weights."""

_ENOUGH = 0.005
"""Of the share that is asked for: so much less is as good."""


class Block(str, enum.Enum):
    """Which weights are zero together."""

    ONE = "1x1"
    FOUR = "1x4"

    @property
    def length(self) -> int:
        """Neighbours along the last axis."""
        return int(self.value.partition("x")[2])


@dataclass(frozen=True, slots=True)
class Sparsity:
    """A share of one constant that is to be zero."""

    share: float

    def __str__(self) -> str:
        """As it is told, such as ``sparsity:0.5``."""
        return f"sparsity:{self.share:g}"


class Encode(str, enum.Enum):
    """How weights with zeros are stored."""

    DENSE = "dense"
    SPARSE = "sparse"


@dataclass(eq=False)
class PrunedChange(JsonData):
    """A constant of which a share is zero now.

    Attributes:
        where: Name of the tensor.
        buffer: Position in the model of its buffer.
        sparsity: Share of its values that was to be zero; whole blocks come nearest to it.
        encode: ``dense``, or ``sparse`` where only the others are stored.
        nbytes: Of the constant as it was.
        saved: Bytes that are gone from the file, at least.
    """

    where: str = field(metadata=shown("tensor"))
    buffer: int = field(metadata=LEFT_OUT)
    dtype: str
    shape: tuple[int, ...]
    readers: tuple[str, ...]
    sparsity: float
    encode: str
    nbytes: int
    saved: int
    payload: PrunedPayload = field(metadata=LEFT_OUT)

    @property
    @computed(after="where")
    def outcome(self) -> str:
        """What was done."""
        return "pruned"

    @property
    @computed("snr_db", made=finite(2))
    def snr(self) -> float:
        """Signal-to-noise ratio in dB of what the constant gives; of its values without inputs."""
        return self.payload.error().snr

    @cached_property
    @computed(merged=True, made=spread("deflated_before", "deflated_after"))
    def deflated(self) -> tuple[int, int]:
        """Deflated size before and after, of this constant alone; computed when asked for."""
        return self.payload.original(), deflated(memoryview(self.payload.data()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Prune(Pass):
    """Makes weights zero that matter least; for downloads, and for sparse files.

    Makes a share of all float weights zero. With --inputs, those whose loss the others can make up for, which
    are then fitted anew. Zeros compress well; --encode sparse stores the rest alone. The speed stays. The
    model is run before and after. LOSSY: outputs change.

    Attributes:
        min_snr: What every output is to keep, in dB; ``sparsity`` is not used then. The shares are found by
            :func:`tfl_rewrite.rewrite`, which runs the file, not by :meth:`run`.
        choices: If given, the share by position of the buffer; what is not in it stays. ``sparsity`` is not
            used then.
        fitting: Chooses weights for what they meet; see :class:`Fitting`.
        notes: Further lines for the report.

    Example:
        >>> from tfl_rewrite.passes import Prune
        >>> model = tfl_rewrite.load("model.tflite")
        >>> (result,) = tfl_rewrite.run(model, [Prune(sparsity=0.7)])
        >>> result.modified
        True
    """

    name: ClassVar[str] = "prune"
    effect: ClassVar[Effect] = Effect.TOLERANCE
    place: ClassVar[str] = "before weights are quantized, which keeps the zeros"
    for_download: ClassVar[bool] = True
    """What gets smaller is the deflated file, unless the sparse form is asked for."""

    sparsity: float = option(
        SPARSITY,
        "the share of all weights that becomes zero, more in those where it costs less (default: 0.5, unless "
        "--min-snr is given)",
        metavar="SHARE",
        bounds=(0.01, 0.99),
    )
    min_snr: float | None = option(
        None,
        "instead of --sparsity: search the largest shares, weight by weight, that keep every output at this "
        "ratio or more, in dB; the file is run many times",
        metavar="DB",
        bounds=SNR_BOUNDS,
    )
    block: Taken[Block, str] = option(
        Block.ONE,
        "1x1 (default): single weights go. 1x4: four neighbours along the last axis go together, as sparse "
        "kernels read them",
        choices=Block,
    )
    encode: Taken[Encode, str] = option(
        Encode.DENSE,
        "dense (default): zeros are stored, the file deflates to less. sparse: only the others are, behind a "
        "DENSIFY, where that is smaller",
        choices=Encode,
    )
    effort: Taken[Effort, str] = option(
        Effort.BALANCED,
        "balanced (default): with --inputs, weights go by what they are multiplied with, and the others take "
        "over their part. fast: the smallest go",
        choices=(Effort.FAST, Effort.BALANCED),
    )
    min_elements: int = option(
        LEAST_ELEMENTS, "keep smaller constants as they are", metavar="N", bounds=(1, 1 << 40)
    )
    include: tuple[str, ...] = option(
        (),
        INCLUDE,
        kind=REGEXES,
        metavar="REGEX",
    )
    exclude: tuple[str, ...] = option(
        (),
        EXCLUDE,
        kind=REGEXES,
        metavar="REGEX",
    )
    choices: Mapping[int, float] | None = None
    fitting: Fitting | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = ()
    selection: Selection = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Reads the patterns.

        Raises:
            UsageError: A value is not one that exists.
        """
        check_options(self)
        patterns, count = compile_all([*self.include, *self.exclude]), len(self.include)
        object.__setattr__(
            self, "selection", Selection(self.min_elements, patterns[:count], patterns[count:])
        )

    @property
    def is_searched(self) -> bool:
        """Whether a search is still to find the shares."""
        return self.min_snr is not None and self.choices is None

    @property
    def is_fitted(self) -> bool:
        """Whether the user's inputs choose weights, or chose the shares."""
        return self.choices is not None or (self.effort is not Effort.FAST and self.fitting is None)

    @property
    def excluding(self) -> str:
        """The option that leaves constants as they are."""
        return "--exclude"

    @property
    def milder(self) -> str:
        """What to ask for where outputs differ too much."""
        return "give a smaller --sparsity, or --min-snr alone to search for the most zeros that keep it"

    def constants(self, model: Model) -> tuple[list[Constant], list[Skip]]:
        """Finds the weights that can be pruned, and a reason for each other float constant."""
        items, skips = find_constants(model, int8=False, min_elements=self.min_elements)
        found = []
        for item in items:
            reason = self._stays(item)
            if reason is None:
                found.append(item)
            else:
                skips.append(_stays(item, *reason))
        return found, skips

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrites the model in place; dense values are made when the file is written.

        Raises:
            UsageError: A search is still to find the shares.
        """
        if self.is_searched:
            raise UsageError(
                "min_snr of prune is kept by a search, which has to run the file",
                remedy="rewrite a file, or give a sparsity",
            )
        items, skips = self.constants(model)
        fitting = fitting_of(self.fitting, self.effort, context)
        if fitting is not None:
            # A search measures whole files on samples that they were not fitted to.
            fitting.prepare(model, items, self.sparsity if self.choices is None else None)
        pruned: list[tuple[Constant, float]] = []
        for item, share in zip(items, self._shares(items, fitting), strict=True):
            if not share:
                skips.append(_stays(item, "needed", "the outputs need it as it is"))
            elif zeros_of(item) >= share - _ENOUGH:
                skips.append(_stays(item, "pruned", f"{zeros_of(item):.0%} of it are zero already"))
            else:
                pruned.append((item, share))
        editor = Editor(model)
        changes = tuple(self._change(model, editor, item, share, fitting) for item, share in pruned)
        editor.finish()
        told = tuple(fitting.notes()) if fitting is not None and changes else ()
        idle = "" if changes else "it has no float weight that can be pruned further"
        return PassResult(self.name, changes, tuple(skips), (*told, *self.notes, *editor.notes), idle=idle)

    def _shares(self, items: Sequence[Constant], fitting: Fitting | None) -> list[float]:
        """Returns the share of zeros of each constant."""
        if self.choices is not None:
            return [self.choices.get(item.position, 0.0) for item in items]
        return divided((_costs(item, fitting) for item in items), self.sparsity) if items else []

    def _stays(self, item: Constant) -> tuple[str, str] | None:
        """Returns why a constant is not pruned, or None."""
        unwanted = self.selection.unwanted([*(tensor.name for tensor in item.tensors), *item.readers])
        if unwanted is not None:
            return unwanted
        if not item.uses or not all(_multiplies(use) for use in item.uses):
            return "no-weight", "no operator multiplies with it alone"
        if any(tensor.is_sparse for tensor in item.tensors):
            return "sparse", "it is sparse already"
        if not item.profile().finite:
            return "not-finite", "it holds NaN or infinite values"
        return None

    def _change(
        self, model: Model, editor: Editor, item: Constant, share: float, fitting: Fitting | None
    ) -> PrunedChange:
        first = item.tensors[0]
        payload = PrunedPayload(item, share, self.block.length, fitting)
        nbytes, saved, encode = item.blob.nbytes, 0, Encode.DENSE
        if self.encode is Encode.SPARSE:
            values = payload.made()
            form = sparse_form(values.reshape(first.shape or ()), self._stored_block(item))
            saved = nbytes - form.nbytes - OVERHEAD_NBYTES
            place = _place_of(model, item)
            if saved > 0 and place is not None:
                emptied = first.buffer
                make_sparse(editor, place, first, form, editor.add_buffer(form.data(values)))
                editor.release(emptied)
                encode = Encode.SPARSE
        if encode is Encode.DENSE:
            saved = 0
            item.hold(payload.blob())
        return PrunedChange(
            item.where,
            item.position,
            first.dtype_name,
            first.shape or (),
            item.readers,
            share,
            encode.value,
            nbytes,
            saved,
            payload,
        )

    def _stored_block(self, item: Constant) -> int:
        """Returns how many neighbours are stored together."""
        length = (item.tensors[0].shape or (1,))[-1]
        return self.block.length if length % self.block.length == 0 else 1


def _costs(item: Constant, fitting: Fitting | None) -> npt.NDArray[np.floating]:
    """Returns what losing each value costs, as a share of what the constant gives, or of its own energy."""
    values = item.values()
    found = fitting.costs(item, values) if fitting is not None else None
    if found is None:
        squares = np.square(values, dtype=np.float64)
        found = squares / (squares.sum() or 1.0)
    del values
    item.blob.release()
    return found


def zeros_of(item: Constant) -> float:
    """Returns the share of a constant's values that is zero."""
    values = item.values()
    share = 1.0 - float(np.count_nonzero(values)) / max(1, values.size)
    del values
    item.blob.release()
    return share


def stored_nbytes(item: Constant, share: float, settings: Prune) -> float:
    """Returns about how many bytes a constant with a share of zeros takes: deflated, or stored sparse."""
    width = item.blob.nbytes / max(1, item.elements)
    index = 1.0 if (item.tensors[0].shape or (1,))[-1] <= 1 << 8 else 2.0
    if settings.encode is Encode.SPARSE:
        return min(
            item.blob.nbytes,
            (1.0 - share) * item.elements * (width + index / settings.block.length) + OVERHEAD_NBYTES,
        )
    # The places of the zeros, by their entropy, beside what stays; exponents of floats deflate a little.
    places = -(share * math.log2(share) + (1.0 - share) * math.log2(1.0 - share)) / 8
    return item.elements * (_DEFLATED * width * (1.0 - share) + places / settings.block.length)


def _stays(item: Constant, rule: str, reason: str) -> Skip:
    return stays(item.tensors[0], item.where, item.readers, rule, reason)


def _multiplies(use: Use) -> bool:
    row = row_of(use.operator)
    return use.position in row.summed or (row.product is ProductKind.MATMUL and use.position == 1)


def _place_of(model: Model, item: Constant) -> SubGraph | None:
    """Returns the subgraph of a constant; None where several tensors hold it."""
    if len(item.tensors) > 1:
        return None
    first = item.tensors[0]
    return next(subgraph for subgraph, tensor in model.tensors() if tensor is first)
