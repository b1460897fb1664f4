"""Chooses integers for a download, by what weights are multiplied with and by what integers cost in bits."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import field

import numpy as np

from tfl_rewrite.calibration.fitter import REMEMBERED_NBYTES, Fitter, Known
from tfl_rewrite.kernels.products import product_of
from tfl_rewrite.model.dtypes import BY_NAME
from tfl_rewrite.model.ir import Model
from tfl_rewrite.model.values import pack
from tfl_rewrite.numerics.codecs import Sized
from tfl_rewrite.numerics.entropy import SLOPE, Rate, entropy
from tfl_rewrite.numerics.gptq import feedback, nearest, pruned
from tfl_rewrite.numerics.grids import KINDS, Float64
from tfl_rewrite.numerics.moments import joined, split
from tfl_rewrite.numerics.products import Depthwise, Product
from tfl_rewrite.numerics.symmetric import Channels, Float32, Levels
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.weights.codes import Code, Codes, code_forms
from tfl_rewrite.weights.forms.integers import BYTES
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.weights.storage import StorageForm
from tfl_rewrite.work import one_blas_thread

_FINE = 4
"""Steps of channels differ by powers of two and so many between: a codec meets few different ones."""
_WIDEST = 32.0
"""By so much at most does the step of a channel differ from the mean one."""
_COARSEST = 16.0
"""So many times the squared step that was asked for is more noise than floats on a grid are worth."""
INT8 = Levels.full(8)
_HEAD = 8
"""By so many octaves at most are the first rows of a table finer, in a second constant: padding and unknown
words stand in every text, so that no mean over texts makes their error less."""
_SCALE_NBYTES, _ZERO_POINT_NBYTES, _BESIDE_NBYTES = 4, 8, 400
"""In the file: of each channel, and of the tensors and operators of each part with some room."""
_SAMPLE = 1 << 16
"""Of a constant, what sizes are compared on."""
_PART_NBYTES = 140
"""What another constant, its DEQUANTIZE and the sum take in a compressed file."""


@slotted
class Coder:
    """Makes the integers of constants; see :class:`tfl_rewrite.weights.codes.Coding`.

    Args:
        fitter: Looks at activations; None where there are none.
        interrupt: Called before the integers of each constant are made; it may raise.
    """

    fitter: Fitter | None
    interrupt: Callable[[], object] = lambda: None
    _items: dict[int, Constant] = field(default_factory=dict)
    _ratios: dict[int, Float64] = field(default_factory=dict)
    _remembered: OrderedDict[tuple[int, Code], Codes] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, model: Model, items: Sequence[Constant]) -> None:
        """Looks at what constants meet.

        Args:
            model: As it was before any of them is changed; not changed.
            items: The constants.
        """
        self._items = {item.position: item for item in items}
        self._ratios.clear()
        self._remembered.clear()
        if self.fitter is not None:
            self.fitter.prepare(model, items)

    def scales(self, position: int, code: Code) -> Float32:
        """Returns the steps of a constant, ``[channels]``.

        A channel whose largest value takes more integers than there are has a step that is larger by a power
        of two, where channels have steps of their own.
        """
        if code.axis is None:
            return np.full(1, code.step * 2.0**-code.head, np.float32)
        steps = code.step * self._ratio(position)
        over = self._items[position].profile().largest / (steps * code.storage.levels.high)
        return np.asarray(steps * np.exp2(np.ceil(np.log2(np.maximum(over, 1.0)) - 1e-6)), np.float32)

    def integers(self, position: int, code: Code) -> Codes:
        """Returns its integers, flat."""
        key = position, code
        made = self._remembered.get(key)
        if made is None:
            self.interrupt()
            with one_blas_thread():
                made = self._coded(self._items[position], code)
            # Constants are written by several threads.
            with self._lock:
                self._remembered[key] = made
                while sum(held.nbytes for held in self._remembered.values()) > REMEMBERED_NBYTES:
                    self._remembered.popitem(last=False)
        return made

    def floats(self, position: int, code: Code) -> memoryview:
        """Returns what DEQUANTIZE makes of them, as bytes."""
        integers, scale = self.integers(position, code), self.scales(position, code)
        channels = Channels.along(self._items[position].tensors[0].shape or (), code.axis)
        wide = integers.astype(np.float32).reshape(channels.outer, channels.channels, channels.inner)
        wide *= scale[None, :, None]
        return wide.data.cast("B")

    def takes(self, position: int) -> bool:
        """Whether floats of a constant can stand in the file in the place of those that it holds."""
        return position in self._items and self._items[position].kind is KINDS["FLOAT32"]

    def first_step(self, position: int, snr: float) -> float:
        """Returns the step whose noise is expected at so many dB below what the constant gives."""
        item = self._items[position]
        values, ratio = item.values().astype(np.float64), self._by_element(position)
        known = None if self.fitter is None else self.fitter.known(item)
        if known is None:
            signal, noise = float(np.square(values).sum()), float(np.square(ratio).sum())
        else:
            weight, steps = self._matrix(known, item, values), self._matrix(known, item, ratio)
            own = np.take_along_axis(weight, known.order[:, None, :], axis=2)
            own_steps = np.take_along_axis(steps, known.order[:, None, :], axis=2)
            signal = float(np.square(own @ known.factor).sum())
            noise = float((np.square(own_steps) * known.strength[:, None, :]).sum())
        found = math.sqrt(12.0 * signal * 10.0 ** (-snr / 10.0) / noise) if signal > 0 and noise > 0 else 0.0
        return found or 1.0

    def bits(self, position: int, step: float) -> float:
        """Returns about how many bits a constant takes with a step: those of the nearest integers."""
        values, ratio = self._items[position].values(), self._by_element(position)
        return values.size * entropy(np.rint(values / (ratio * step)))

    def best(self, position: int, step: float, names: Sequence[str], sized: Sized) -> Code | None:
        """Returns the form that takes the fewest bytes for what it errs."""
        values, wanted = self._items[position].values(), self._by_element(position) * step
        start = max(0, (values.size - _SAMPLE) // 2)
        part = slice(start, start + _SAMPLE)
        share, made = values.size / values[part].size, dict[str, float]()
        # Of what is looked up some rows count for much more than others, and nothing tells which.
        whole = None in _products(self._items[position])
        largest = float(np.abs(values / wanted).max(initial=0.0))
        if self._items[position].table and BYTES.name in names and self._smaller(position, BYTES):
            head = min(_HEAD, math.floor(math.log2(BYTES.levels.high / max(1.0, np.rint(largest)))))
            if head > 0:
                return Code(step, BYTES.name, head=head)
        for name in names:
            form = code_forms()[name]
            if not self._smaller(position, form) or (whole and np.rint(largest) > form.levels.high):
                continue
            steps = self._steps(position, Code(step, name, self._axis(position)))[part]
            ideal = values[part] / steps
            integers = np.clip(np.rint(ideal), *form.levels)
            more = max(1.0, 12.0 * float(np.square((ideal - integers) * steps / wanted[part]).mean()))
            if more > _COARSEST:
                continue
            nbytes = sized(packed(form, _stored(integers, form.levels)))
            made[name] = (nbytes + math.log2(more) * ideal.size / 16) * share
            made[name] += _PART_NBYTES * len(form.parts)
        if not made:
            return None
        return Code(step, min(made, key=lambda name: made[name]), self._axis(position))

    def _smaller(self, position: int, form: StorageForm) -> bool:
        """Whether a form takes fewer bytes in the file itself, too: others are refused when it is written."""
        item = self._items[position]
        scales = (_ZERO_POINT_NBYTES + _SCALE_NBYTES) * (
            1 if self._axis(position) is None else item.rows.channels
        )
        beside = len(form.parts) * (scales + _BESIDE_NBYTES + 2 * len(item.where))
        return form.data_nbytes(item.elements) + beside < item.blob.nbytes

    def _coded(self, item: Constant, code: Code) -> Codes:
        levels = code.storage.levels
        values = item.values().astype(np.float64)
        steps = self._steps(item.position, code)
        known = None if self.fitter is None else self.fitter.known(item)
        if known is None and code.head:
            scale, high = 2**code.head, levels.high >> code.head
            made: Codes = _unfitted(values, steps * scale, Levels(-high, high)).astype(levels.dtype)
            made *= scale
            head = slice(item.head_rows * values.size // item.table)
            made[head] = np.clip(np.rint(values[head] / steps[head]), *levels)
            return made
        if known is None:
            return _unfitted(values, steps, levels)
        weight, wide = self._matrix(known, item, values), self._matrix(known, item, steps)
        narrow = wide[:, :, :1] if bool((wide == wide[:, :, :1]).all()) else wide
        counts = known.strength[:, None] * np.square(np.take_along_axis(wide, known.order[:, None], axis=2))
        first = nearest(weight, narrow, levels)
        rate = Rate.of(first, *levels, SLOPE * float(counts.mean()))
        made = feedback(weight, np.ascontiguousarray(narrow), known, levels, pruned(weight), rate)
        whole = joined(made, known.parts)
        return _stored(known.product.weight(whole).reshape(-1), levels)

    def _matrix(self, known: Known, item: Constant, values: Float64) -> Float64:
        whole = known.product.matrix(values.reshape(item.tensors[0].shape or ()))
        return np.asarray(split(whole, known.parts), np.float64)

    def _steps(self, position: int, code: Code) -> Float64:
        """Returns the step of each element."""
        return self._spread(position, code.axis, self.scales(position, code).astype(np.float64))

    def _by_element(self, position: int) -> Float64:
        """Returns the step of each element over the common one, as far as there are integers enough."""
        axis = self._axis(position)
        return self._spread(position, axis, np.ones(1) if axis is None else self._ratio(position))

    def _spread(self, position: int, axis: int | None, each: Float64) -> Float64:
        channels = Channels.along(self._items[position].tensors[0].shape or (), axis)
        sides = (channels.outer, channels.channels, channels.inner)
        return np.broadcast_to(each[None, :, None], sides).reshape(-1)

    def _axis(self, position: int) -> int | None:
        """Returns along which axis a constant has steps: that of the channels of a depthwise filter."""
        item = self._items[position]
        if not item.uses or not all(isinstance(product, Depthwise) for product in _products(item)):
            return None
        return len(item.tensors[0].shape or ()) - 1 if item.rows.channels > 1 else None

    def _ratio(self, position: int) -> Float64:
        """Returns the step of each channel over the common one: less where what it meets is strong."""
        found = self._ratios.get(position)
        if found is None:
            item = self._items[position]
            known = None if self.fitter is None else self.fitter.known(item)
            if known is not None:
                strength = np.exp(np.log(np.maximum(known.strength, 1e-300)).mean(axis=1, dtype=np.float64))
                each = np.repeat(1.0 / np.sqrt(strength), item.rows.channels // strength.size)
            else:
                each = np.sqrt(item.profile().power)
            each = np.where(each > 0, each, each.max(initial=0.0) or 1.0)
            ratio = np.log2(each / np.exp(np.log(each).mean()))
            ratio = np.clip(ratio, -math.log2(_WIDEST), math.log2(_WIDEST))
            found = self._ratios[position] = np.exp2(np.rint(ratio * _FINE) / _FINE)
        return found


def _unfitted(values: Float64, steps: Float64, levels: Levels) -> Codes:
    """Returns the integers that are best by the values alone."""
    ideal = values / steps
    found = np.clip(np.rint(ideal), *levels)
    rate = Rate.of(found, *levels, SLOPE)
    return _stored(rate.pick(ideal, found, np.ones(1)), levels)


def _stored(integers: Float64, levels: Levels) -> Codes:
    return integers.astype(levels.dtype)


def _products(item: Constant) -> list[Product | None]:
    return [product_of(use.operator, use.position) for use in item.uses]


def packed(form: StorageForm, integers: Codes) -> bytes:
    """Returns integers as a file holds them in a form."""
    parts = ((part, integers if part.take is None else part.take(integers)) for part in form.divided())
    return b"".join(pack(held, BY_NAME[part.kind].bits).tobytes() for part, held in parts)
