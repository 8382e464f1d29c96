"""Public address of loading, kept for code outside; see docs/architecture.md."""

from .load.folders import identity_path, register_folders
from .load.restorer import load_base_restorer

__all__ = ["identity_path", "load_base_restorer", "register_folders"]
