"""Public address of the colour fixes, kept for code outside; see docs/architecture.md."""

from .pictures.color import adain_fix, wavelet_fix

__all__ = ["adain_fix", "wavelet_fix"]
