"""rename: other names for inputs, outputs, tensors, signatures and their arguments.

What callers use are the names of a signature's arguments, and the names of tensors where there is no
signature; converters often give both the same. So ``input`` and ``output`` look for a name among the
arguments first, in every signature: these get the new one, and so do their tensors where they had the same
name. A name that no argument has is that of a tensor. ``tensor`` and ``argument`` mean one of the two alone.
All names are read as they were before the pass, so two may be swapped.

Changed are names only, and those in the metadata ``TFLITE_METADATA`` that are equal to an old one. Refused
are empty names, names that nothing or several things have, and a new one that another tensor of the subgraph,
another argument on the same side of the signature, or another signature has. The outputs are equal to the
bit: each is compared with what the original gives under the old name. A second run finds the new names and
changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tfl_rewrite.editing.base import Context, Pass, PassResult
from tfl_rewrite.editing.names import nothing_asked
from tfl_rewrite.editing.renaming import Renaming
from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.option import option

_PAIR = "OLD=NEW"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rename(Pass):
    """Gives inputs, outputs, tensors and signatures other names.

    An input or output is named by its argument of a signature, or by its tensor; both get the new name
    where both had the old one. Names in TFLITE_METADATA follow. Outputs stay equal to the bit.

    Example:
        >>> (tensor,) = tfl_rewrite.load("model.tflite").subgraphs[0].inputs
        >>> pairs = tfl_rewrite.passes_of([f"rename:input={tensor.name}=image"])
        >>> report = tfl_rewrite.rewrite("model.tflite", "named.tflite", pairs)
        >>> tfl_rewrite.load("named.tflite").subgraphs[0].inputs[0].name
        'image'
    """

    name: ClassVar[str] = "rename"
    place: ClassVar[str] = "behind what goes by the names of the original, such as samples to calibrate with"

    input: tuple[str, ...] = option(
        (),
        "an input: the argument of that name in every signature, or the tensor, both where both are named "
        "so; #INDEX for the tensor of that number; repeatable",
        metavar=_PAIR,
    )
    output: tuple[str, ...] = option((), "an output, likewise; repeatable", metavar=_PAIR)
    tensor: tuple[str, ...] = option(
        (), "a tensor alone, of the main subgraph or of the only one that has it; repeatable", metavar=_PAIR
    )
    argument: tuple[str, ...] = option(
        (), "an input or output of one signature, without its tensor; repeatable", metavar=f"KEY:{_PAIR}"
    )
    signature: tuple[str, ...] = option((), "a signature; repeatable", metavar=_PAIR)

    def run(self, model: Model, context: Context) -> PassResult:
        """Renames.

        Raises:
            UsageError: Nothing is asked for; a name is unknown, stands for several things, cannot be one, or
                is taken.
        """
        if not self._asked:
            raise nothing_asked("--input, --output or --signature OLD=NEW")
        names = Renaming(model)
        for side, pairs in (("input", self.input), ("output", self.output)):
            for text in pairs:
                names.border(side, text)
        for text in self.tensor:
            names.tensor(text)
        for text in self.argument:
            names.argument(text)
        for text in self.signature:
            names.key(text)
        names.check()
        if not names:
            idle = "" if names.skips else "it has these names already"
            return PassResult(self.name, (), tuple(names.skips), grows=True, idle=idle)
        counterparts = names.counterparts()
        notes = names.described()
        changes = names.apply()
        return PassResult(
            self.name,
            tuple(changes),
            tuple(names.skips),
            (*notes, *names.notes),
            grows=True,
            counterparts=counterparts,
        )

    @property
    def _asked(self) -> bool:
        return any((self.input, self.output, self.tensor, self.argument, self.signature))


__all__ = ["Rename"]
