"""What may stand before inputs and behind outputs: read from text, made for a tensor, refused in words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.nets import Net, with_grid
from tfl_rewrite.editing.stages import STAGES, as_float, between, stage_of
from tfl_rewrite.errors import TflRewriteError, UnsupportedError
from tfl_rewrite.kernels.reads import needed_version
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken, problems
from tfl_rewrite.model.ir import Tensor

PICTURE = (1, 8, 6, 3)


def tensor(*shape: int, kind: str = "FLOAT32") -> Tensor:
    made = Net().tensor("x", shape)
    made.dtype = dtypes.BY_NAME[kind].value
    return made


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("normalize:mean=127.5,std=127.5", ["SUB", "MUL"]),
        ("normalize:mean=1+2+3", ["SUB", "MUL"]),
        ("normalize:std=255", ["MUL"]),
        ("cast", ["CAST"]),
        ("cast:int8", ["CAST"]),
        ("resize", ["RESIZE_BILINEAR"]),
        ("resize:8x6,source=4x4", ["RESIZE_BILINEAR"]),
        ("softmax", ["SOFTMAX"]),
        ("argmax", ["ARG_MAX"]),
        ("top-k:2", ["TOPK_V2"]),
    ],
)
def test_stages_are_sound_models(text: str, operators: list[str]) -> None:
    stage = stage_of(text, before=STAGES[text.partition(":")[0]].before)
    made = stage.make(tensor(*PICTURE))
    main = made.model.subgraphs[0]
    assert [item.code.name for item in main.operators] == operators
    assert not broken(made.model) and not problems(made.model)
    assert all(item.code.version == needed_version(item) for item in main.operators)
    given = np.random.default_rng(0).random(main.inputs[0].shape or ()).astype(np.float32)
    assert [value.shape for value in made.expected(given)] == [item.shape for item in main.outputs]


def test_what_is_expected_is_what_words_say() -> None:
    given = np.array([[3, 1, 3, 2]], np.float32)
    values, indices = stage_of("top-k:3", before=False).make(tensor(1, 4)).expected(given)
    assert values.tolist() == [[3, 3, 2]] and indices.tolist() == [[0, 2, 3]]
    (number,) = stage_of("argmax", before=False).make(tensor(1, 4)).expected(given)
    assert number.tolist() == [0]
    (scaled,) = stage_of("normalize:mean=1,std=2", before=True).make(tensor(1, 4)).expected(given)
    assert scaled.tolist() == [[1, 0, 1, 0.5]]
    rows = np.array([0, 10], np.float32).reshape(1, 1, 2, 1)
    (wide,) = stage_of("resize:1x4", before=True).make(tensor(1, 1, 4, 1)).expected(rows)
    assert wide.reshape(-1).tolist() == [0, 2.5, 7.5, 10]


def test_resize_takes_pictures_of_any_size_unless_told() -> None:
    free = stage_of("resize", before=True).make(tensor(*PICTURE)).model.subgraphs[0].inputs[0]
    assert (free.shape, free.signature) == ((1, 1, 1, 3), (1, -1, -1, 3))
    told = stage_of("resize:source=4x5", before=True).make(tensor(*PICTURE)).model.subgraphs[0].inputs[0]
    assert (told.shape, told.signature) == ((1, 4, 5, 3), None)


@pytest.mark.parametrize(
    ("text", "before", "why"),
    [
        ("nomalize:mean=1", True, "did you mean 'normalize'"),
        ("softmax", True, "is unknown"),
        ("normalize:mean=a", True, "no number"),
        ("normalize:mean=1+2", True, "give one number, or 3"),
        ("normalize:std=0", True, "std of normalize is 0"),
        ("normalize:std=nan", True, "give one number"),
        ("normalize:men=1", True, "did you mean 'mean'"),
        ("cast:float16", True, "use one of uint8"),
        ("resize:9x9", True, "takes pictures of 8x6, not 9x9"),
        ("resize:8", True, "not a size of a picture"),
        ("resize:source=0x4", True, "not a size of a picture"),
        ("top-k:4", False, "fewer than 4"),
        ("top-k:0", False, "give 1 or more"),
    ],
)
def test_what_is_not_possible_is_told(text: str, before: bool, why: str) -> None:
    with pytest.raises(TflRewriteError, match=why):
        stage_of(text, before=before).make(tensor(*PICTURE))


def test_what_stands_between_types() -> None:
    one, other = with_grid(tensor(1, 4, kind="INT8"), 0.5, 2), with_grid(tensor(1, 4, kind="UINT8"), 0.5, 130)
    real = tensor(1, 4)
    assert between(one, one) is None and between(real, tensor(1, 4)) is None
    made = [between(*pair) for pair in ((one, other), (real, one), (one, real))]
    assert [item.name for item in made if item is not None] == ["quantize", "quantize", "dequantize"]
    assert made[1] is not None
    (integers,) = made[1].expected(np.array([0.0, 1.0, 999.0], np.float32))
    assert integers.tolist() == [2, 4, 127]
    assert as_float(one).dtype_name == "FLOAT32" and as_float(real) is real
    with pytest.raises(UnsupportedError, match="is int32, and 'x' takes float32"):
        between(tensor(1, 4, kind="INT32"), real)
    with pytest.raises(UnsupportedError, match="stages are for floats"):
        as_float(tensor(1, kind="INT32"))
