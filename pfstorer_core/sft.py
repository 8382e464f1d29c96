"""Public address of the SFT block, kept for code outside; see docs/architecture.md."""

from .restorers.stablesr.sft import SFTBlock

__all__ = ["SFTBlock"]
