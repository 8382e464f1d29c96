"""Public address of base restorers, kept for code outside; see docs/architecture.md."""

from .restorers.base import BaseRestorer
from .restorers.files import load, save

__all__ = ["BaseRestorer", "load", "save"]
