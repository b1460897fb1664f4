"""What every pass stands on: what a pass is and returns, and edits that keep a model sound."""

from __future__ import annotations

from tfl_rewrite import late

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tfl_rewrite.editing.base import Context as Context
    from tfl_rewrite.editing.base import Edit as Edit
    from tfl_rewrite.editing.base import Effect as Effect
    from tfl_rewrite.editing.base import Pass as Pass
    from tfl_rewrite.editing.base import PassResult as PassResult
    from tfl_rewrite.editing.base import Skip as Skip
    from tfl_rewrite.editing.editor import Editor as Editor
    from tfl_rewrite.editing.shapes import Shapes as Shapes
    from tfl_rewrite.options.option import option as option

__getattr__, __dir__, __all__ = late(
    __name__,
    {
        "editing.base": "Context Edit Effect Pass PassResult Skip",
        "editing.editor": "Editor",
        "editing.shapes": "Shapes",
        "options.option": "option",
    },
)
