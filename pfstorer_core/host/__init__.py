"""The only part that imports ComfyUI: loading, patching and sampling in the host."""

from .load.cfw import load_cfw
from .load.restorer import load_base_restorer
from .load.supir import load_supir
from .patch.apply_identity import apply_identity
from .patch.condition_on_lq import condition_on_lq
from .restoring.restore import restore
from .train.identity import train_identity

__all__ = [
    "apply_identity",
    "condition_on_lq",
    "load_base_restorer",
    "load_cfw",
    "load_supir",
    "restore",
    "train_identity",
]
