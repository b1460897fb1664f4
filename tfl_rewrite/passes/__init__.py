"""Rewrites of a model, one file a pass; :mod:`tfl_rewrite.passes.catalog` lists them by their names."""

from __future__ import annotations

from tfl_rewrite import late

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tfl_rewrite.passes.catalog import passes_of as passes_of
    from tfl_rewrite.passes.catalog import preset as preset
    from tfl_rewrite.passes.compact import Compact as Compact
    from tfl_rewrite.passes.dedup import Dedup as Dedup
    from tfl_rewrite.passes.dequantize import Dequantize as Dequantize
    from tfl_rewrite.passes.drop_channels import DropChannels as DropChannels
    from tfl_rewrite.passes.equalize import Equalize as Equalize
    from tfl_rewrite.passes.fold_batch_norms import FoldBatchNorms as FoldBatchNorms
    from tfl_rewrite.passes.fold_constants import FoldConstants as FoldConstants
    from tfl_rewrite.passes.fuse import Fuse as Fuse
    from tfl_rewrite.passes.metadata import SetMetadata as SetMetadata
    from tfl_rewrite.passes.prune import Prune as Prune
    from tfl_rewrite.passes.quantize import Quantize as Quantize
    from tfl_rewrite.passes.quantize_weights import QuantizeWeights as QuantizeWeights
    from tfl_rewrite.passes.remove_dead import RemoveDead as RemoveDead
    from tfl_rewrite.passes.remove_noops import RemoveNoops as RemoveNoops
    from tfl_rewrite.passes.rename import Rename as Rename
    from tfl_rewrite.passes.repair import Repair as Repair
    from tfl_rewrite.passes.retarget import Retarget as Retarget
    from tfl_rewrite.passes.round_weights import RoundWeights as RoundWeights
    from tfl_rewrite.passes.signatures import Signatures as Signatures
    from tfl_rewrite.passes.simplify import Simplify as Simplify

__getattr__, __dir__, __all__ = late(
    __name__,
    {
        "passes.catalog": "passes_of preset",
        "passes.compact": "Compact",
        "passes.dedup": "Dedup",
        "passes.dequantize": "Dequantize",
        "passes.drop_channels": "DropChannels",
        "passes.equalize": "Equalize",
        "passes.fold_batch_norms": "FoldBatchNorms",
        "passes.fold_constants": "FoldConstants",
        "passes.fuse": "Fuse",
        "passes.metadata": "SetMetadata",
        "passes.prune": "Prune",
        "passes.quantize": "Quantize",
        "passes.quantize_weights": "QuantizeWeights",
        "passes.remove_dead": "RemoveDead",
        "passes.remove_noops": "RemoveNoops",
        "passes.rename": "Rename",
        "passes.repair": "Repair",
        "passes.retarget": "Retarget",
        "passes.round_weights": "RoundWeights",
        "passes.signatures": "Signatures",
        "passes.simplify": "Simplify",
    },
)
