"""Public address of the time-aware encoder, kept for code outside; see docs/architecture.md."""

from .restorers.stablesr.encoder import EncoderConfig, TimeAwareEncoder

__all__ = ["EncoderConfig", "TimeAwareEncoder"]
