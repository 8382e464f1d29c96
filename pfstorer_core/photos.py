"""Public address of reading photos, kept for code outside; see docs/architecture.md."""

from .pictures.photos import load_photo

__all__ = ["load_photo"]
