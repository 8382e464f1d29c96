"""The gamma that suits a picture."""

from __future__ import annotations

from torch import Tensor

# Chosen on three people: more where the picture says less, see docs/identity.md.
_LEVELS, _GAMMAS = (0.4, 0.75), (0.85, 1.0)


def gamma_for(level: Tensor) -> Tensor:
    """Returns the gamma (B,) for levels (B,) of `detail.degradation_level`."""
    (low, high), (least, most) = _LEVELS, _GAMMAS
    return least + (most - least) * ((level - low) / (high - low)).clamp(0, 1)
