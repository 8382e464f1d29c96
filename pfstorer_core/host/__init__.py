"""The only part that imports ComfyUI: loading, patching and sampling in the host."""

from .cfw import load_cfw
from .identity import apply_identity
from .identity_training import train_identity
from .loading import load_base_restorer
from .restoration import restore
from .sampling import condition_on_lq

__all__ = [
    "apply_identity",
    "condition_on_lq",
    "load_base_restorer",
    "load_cfw",
    "restore",
    "train_identity",
]
