"""What an adapter remembers of how its person looks to the restorer that it was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

_LARGEST = 1000.0


@dataclass(frozen=True)
class LikenessScale:
    """Ends of the scale on which pictures are compared with an adapter's person.

    Args:
        own: mean likeness of views of the photos that the adapter was trained on, see
            `host.restoring.likeness.Likeness`.
        strangers: that of drawn strangers.

    Raises:
        ValueError: no finite numbers, or the own are no higher.
    """

    own: float
    strangers: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) and abs(x) < _LARGEST for x in (self.own, self.strangers)):
            raise ValueError("a likeness is not finite")
        if self.own - self.strangers < 1e-3:
            raise ValueError("strangers are as like as the person")

    def relative(self, likeness: Tensor) -> Tensor:
        """Returns the likeness (B,) where 0 is strangers and 1 the photos of the training."""
        return (likeness - self.strangers) / (self.own - self.strangers)
