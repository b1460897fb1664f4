"""A pass for tfl-rewrite that gives inner tensors short names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tfl_rewrite import Model
from tfl_rewrite.editing import Context, Edit, Effect, Pass, PassResult, Skip, option
from tfl_rewrite.model import Graph


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortNames(Pass):
    """Gives tensors inside the model short names.

    Names of inputs and outputs stay, because programs find tensors by them. Outputs stay equal to the bit.
    """

    name: ClassVar[str] = "short-names"
    effect: ClassVar[Effect] = Effect.EXACT
    place: ClassVar[str] = "last, so that other passes can still find tensors by their names"

    prefix: str = option("t", "what short names begin with", metavar="TEXT")
    least: int = option(8, "names of fewer characters stay", metavar="N", bounds=(1, 1000))

    def run(self, model: Model, context: Context) -> PassResult:
        """Renames in place; a second run finds nothing to do."""
        graph = Graph.of(model)
        changes, skips = [], []
        for subgraph in model.subgraphs:
            taken = {tensor.name for tensor in subgraph.tensors}
            for index, tensor in enumerate(subgraph.tensors):
                short = f"{self.prefix}{index}"
                if id(tensor) in graph.exposed:
                    skips.append(Skip(tensor.name, "it is an input or an output", "interface"))
                elif len(tensor.name) >= max(self.least, len(short) + 1) and short not in taken:
                    changes.append(Edit(tensor.name, f"is {short} now", saved=len(tensor.name) - len(short)))
                    tensor.name = short
        return PassResult(self.name, tuple(changes), tuple(skips), idle="" if changes else "names are short")
