"""The only part that imports ComfyUI: loading, patching and sampling in the host."""

from .loading import load_base_restorer
from .sampling import condition_on_lq, restore

__all__ = ["condition_on_lq", "load_base_restorer", "restore"]
