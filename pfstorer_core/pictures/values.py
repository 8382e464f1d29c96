"""The values of pictures and masks."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import PFStorerError

_OVERSHOOT = 1.0  # on both sides; what filters overshoot by is less, what is in [0, 255] is more


def unit_range(values: Tensor, what: str) -> Tensor:
    """Returns values clamped to [0, 1], or says that they are no picture's.

    Scaling with bicubic and other sharpening filters leaves the range by a little, which ComfyUI
    cuts off where a picture is saved.

    Args:
        values: floats of any shape that is not empty; stays as it is.
        what: how an error shall begin, such as "The mask".

    Raises:
        PFStorerError: values that are not finite, or far outside [0, 1].
    """
    low, high = (float(value) for value in values.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN spoils both
        raise PFStorerError(
            f"{what} has values that are not finite (NaN or infinite); check the node that made it."
        )
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise PFStorerError(
            f"{what} has values from {low:.3g} to {high:.3g}, expected 0 to 1; check the node that "
            "made it."
        )
    return values.clamp(0.0, 1.0)
