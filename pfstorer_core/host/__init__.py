"""The only part that imports ComfyUI: loading, patching and sampling in the host."""

from .identity import apply_identity
from .identity_training import train_identity
from .loading import load_base_restorer
from .sampling import condition_on_lq, restore

__all__ = [
    "apply_identity",
    "condition_on_lq",
    "load_base_restorer",
    "restore",
    "train_identity",
]
