"""Integers for a download: every form means the floats that the search measured, on every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net, run
from tfl_rewrite import load, save
from tfl_rewrite.calibration.coder import Coder, packed
from tfl_rewrite.calibration.fitter import Fitter
from tfl_rewrite.editing.base import Context
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics.codecs import Codec
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.search.trials import coded
from tfl_rewrite.search.units import base_pass
from tfl_rewrite.weights.codes import Code, code_forms
from tfl_rewrite.weights.grids import find_constants


def net(*, half: bool = False) -> Model:
    """A depthwise filter whose channels meet unlike strengths, and a dense layer."""
    made = Net()
    source = made.input("x", (1, 4, 4, 96))
    values = made.random.standard_normal((1, 9, 9, 96)).astype(np.float32)
    filters = made.half("dw", values) if half else made.constant("dw", values)
    bias = made.constant("bias", np.zeros(96, np.float32))
    options = {"padding": 0, "stride_w": 1, "stride_h": 1, "depth_multiplier": 1}
    seen = made.add("DEPTHWISE_CONV_2D", [source, filters, bias], "seen", (1, 4, 4, 96), **options)
    flat = made.add(
        "RESHAPE", [seen, made.constant("shape", np.array([1, 1536], np.int32))], "flat", (1, 1536)
    )
    made.output(made.dense(flat, made.weights("fc", (24, 1536)), "out"))
    return made.model


def opened(model: Model, fitter: Fitter | None = None) -> tuple[Coder, dict[str, int]]:
    items, _ = find_constants(model, int8=False, min_elements=64)
    coder = Coder(fitter)
    coder.prepare(model, items)
    return coder, {item.where: item.position for item in items}


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("form", "half"),
    # What takes as many bits as float16 is not stored in its place.
    [(name, half) for name, form in code_forms().items() for half in (False, True)[: 1 + (form.bits < 16)]],
)
def test_every_form_computes_with_the_floats_that_were_measured(
    tmp_path: Path, form: str, half: bool
) -> None:
    save(net(half=half), tmp_path / "in.tflite")
    model = load(tmp_path / "in.tflite")
    coder, places = opened(model)
    dw = "dw_half" if half else "dw"
    high = code_forms()[form].levels.high
    codes = {
        places[dw]: Code(2.5 / high, form, 3),
        places["fc"]: Code(2.5 / high, form),
    }
    save(net(), tmp_path / "floats.tflite")
    patched = load(tmp_path / "floats.tflite")
    named = {item.where: item for item in find_constants(patched, int8=False, min_elements=64)[0]}
    for name, position in (("dw", places[dw]), ("fc", places["fc"])):
        named[name].buffer.blob = OwnedBlob(bytes(coder.floats(position, codes[position])))
    # In the place of float16 values stand none that are no float16.
    assert coder.takes(places[dw]) is not half
    coded(base_pass(QuantizeWeights()), coder, codes).run(model, Context())
    save(model, tmp_path / "out.tflite")
    save(patched, tmp_path / "patched.tflite")
    x = {"x": np.random.default_rng(1).standard_normal((1, 4, 4, 96)).astype(np.float32)}
    wanted, found = (run(tmp_path / name, x)["out"] for name in ("patched.tflite", "out.tflite"))
    assert np.abs(wanted - found).max() <= 1e-5 * np.abs(wanted).max()


def test_parts_add_up_to_the_integers() -> None:
    for name, form in code_forms().items():
        integers = np.arange(form.levels.low, form.levels.high + 1).astype(
            np.int16 if name in ("int10", "int12", "int8+int8") else np.int8
        )
        whole, parts = 0, form.divided()
        for part in parts:
            held = integers if part.take is None else part.take(integers)
            assert held.dtype == np.int8
            whole = whole + held.astype(int) * part.step
        assert np.array_equal(whole, integers), name
        assert len(packed(form, integers)) >= integers.size * form.bits // 8


def test_small_ranges_take_small_forms() -> None:
    model = net()
    coder, places = opened(model)
    names, sized = list(code_forms()), Codec.DEFLATE.sized(quick=True)
    found = [coder.best(places["fc"], step, names, sized) for step in (0.5, 2e-3, 1e-9)]
    assert found[0] is not None and found[0].form == "int4"
    assert found[1] is not None and found[1].form == "int12"
    assert found[2] is None


def test_many_small_and_few_large_integers_lie_two_to_a_byte() -> None:
    made = Net()
    x = made.input("x", (1, 512))
    values = made.random.laplace(size=(64, 512)).astype(np.float32)
    made.output(made.dense(x, made.constant("fc", values), "out"))
    coder, places = opened(made.model)
    sized = Codec.DEFLATE.sized(quick=True)
    found = [coder.best(places["fc"], 1 / steps, list(code_forms()), sized) for steps in (2, 10, 40)]
    assert [code.form for code in found if code is not None] == ["int4+int4", "int8", "int10"]


def test_rows_that_are_looked_up_are_not_clipped() -> None:
    made = Net()
    values = made.random.standard_normal((96, 64)).astype(np.float32)
    values[5] *= 2
    looked, dense = made.constant("table", values), made.constant("fc", -values)
    made.output(made.add("GATHER", [looked, made.input("at", (1,), np.int32)], "rows", (1, 64)))
    made.output(made.dense(made.input("x", (1, 64)), dense, "out"))
    coder, places = opened(made.model)
    found = [
        coder.best(places[name], 0.4, ["int8", "int4"], Codec.DEFLATE.sized(quick=True))
        for name in ("fc", "table")
    ]
    # One row in a hundred is beyond four bits; it may be the one that all texts are filled up with.
    assert [code.form for code in found if code is not None] == ["int4", "int8"]


def test_the_first_rows_of_a_table_are_finer() -> None:
    made = Net()
    values = made.random.standard_normal((4096, 16)).astype(np.float32)
    made.output(
        made.add(
            "GATHER", [made.constant("table", values), made.input("at", (1,), np.int32)], "rows", (1, 16)
        )
    )
    coder, places = opened(made.model)
    sized = Codec.DEFLATE.sized(quick=True)
    code = coder.best(places["table"], 0.1, ["int8+int8", "int8"], sized)
    assert code is not None and (code.form, code.head) == ("int8+int8", 8)
    integers = coder.integers(places["table"], code).astype(int).reshape(values.shape)
    scale = coder.scales(places["table"], code)
    error = np.abs(integers * scale - values).max(axis=1)
    assert error[:16].max() <= 0.1 / 512 * 1.001 and error[16:].min() > 0.1 / 512
    assert not (integers[16:] % 256).any()
    # As fine as there are integers for: 4.x over 0.001 leave three bits.
    fine = coder.best(places["table"], 0.001, ["int8+int8", "int12"], sized)
    assert fine is not None and fine.head == 2


def test_channels_of_a_depthwise_filter_have_steps_of_their_own() -> None:
    model = net()
    coder, places = opened(model)
    code = coder.best(places["dw"], 0.1, ["int8"], Codec.DEFLATE.sized(quick=True))
    assert code is not None and code.axis == 3
    assert coder.scales(places["dw"], code).shape == (96,)
    # A channel with larger values than there are integers for gets a larger step, by a power of two.
    fine = coder.scales(places["dw"], Code(1e-4, "int4", 3)) / coder.scales(places["dw"], code) * 0.1 / 1e-4
    assert np.array_equal(np.log2(fine), np.rint(np.log2(fine))) and (fine > 1).all()
    integers = coder.integers(places["dw"], Code(1e-4, "int4", 3))
    assert integers.min() >= -8 and integers.max() <= 7


@pytest.mark.runtime
def test_what_weights_meet_decides(fixtures: Path, few: Path) -> None:
    """Of the products, integers that know the activations are off by less at the same step."""
    model = load(fixtures / "digits_cnn.tflite")
    judging = Judging(inputs=(few,))
    fitted, places = opened(model, Fitter(judging))
    plain, _ = opened(model)
    errors = []
    for coder in (fitted, plain):
        total = 0.0
        for item in find_constants(model, int8=False, min_elements=64)[0]:
            assert fitted.fitter is not None
            known = fitted.fitter.known(item)
            if known is None or known.parts != 1 or coder.best(item.position, 0.05, ["int8"], len) is None:
                continue
            code = Code(0.05, "int8")
            made = np.frombuffer(coder.floats(item.position, code), "<f4")
            off = known.product.matrix((item.values() - made).reshape(item.tensors[0].shape))
            total += float(np.einsum("grk,gkl,grl->", off, known.moments(), off))
        errors.append(total)
    assert places and errors[0] < 0.8 * errors[1]


@pytest.mark.runtime
def test_whoever_is_out_of_time_ends_it_in_the_middle(fixtures: Path, few: Path) -> None:
    """And nothing is left that stands for the whole."""
    model, ends = load(fixtures / "digits_cnn.tflite"), True

    def interrupt() -> None:
        if ends:
            raise StopAsyncIteration

    fitter = Fitter(Judging(inputs=(few,)), interrupt=interrupt)
    items, _ = find_constants(model, int8=False, min_elements=64)
    coder = Coder(fitter, interrupt)
    with pytest.raises(StopAsyncIteration):
        coder.prepare(model, items)
    assert not fitter.found
    ends = False
    coder.prepare(model, items)
    assert fitter.found
    place, ends = items[0].position, True
    with pytest.raises(StopAsyncIteration):
        coder.integers(place, Code(0.1, "int8"))
    ends = False
    assert coder.integers(place, Code(0.1, "int8")).size == items[0].elements
