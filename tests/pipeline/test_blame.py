"""How the graph of a file is named where node data lies over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfl_rewrite import blame, load
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.pipeline.verify import graph_name


def test_names_as_model_explorer_has_them(fixtures: Path) -> None:
    model = load(fixtures / "two_signatures_shared_weights.tflite")
    model.subgraphs[0].name = "graph"
    assert graph_name(model) == "graph"
    model.subgraphs[0].name = ""
    key = next(item.key for item in model.signatures if item.subgraph is model.subgraphs[0])
    assert key and graph_name(model) == key
    model.signatures = []
    assert graph_name(model) == "main"


@pytest.mark.runtime
def test_the_rewritten_file_gives_the_name(fixtures: Path) -> None:
    path = fixtures / "dense.tflite"
    found = blame(path, path, Judging(samples=1))
    assert list(found.node_data()) == [graph_name(load(path))] == [found.graph]


@pytest.mark.runtime
def test_files_that_only_the_interpreter_takes(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfl_rewrite.errors import FormatError
    from tfl_rewrite.pipeline import verify as blaming

    def refuse(path: object) -> None:
        raise FormatError("no")

    monkeypatch.setattr(blaming, "load", refuse)
    path = fixtures / "dense.tflite"
    assert blaming.blame(path, path, Judging(samples=1)).graph == "main"
