"""Synthetic degradation: sharp pictures to low-quality (LQ) ones."""

from .config import DegradationConfig
from .presets import PRESETS
from .second_order import degrade

__all__ = ["PRESETS", "DegradationConfig", "degrade"]
