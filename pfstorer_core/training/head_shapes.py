"""Where the head of a photo is, as the training of the head detector needs to know it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PFStorerError, first_line

# Shares of half a head's height, as in drawn.painting.people.head_mask
_HAIR = 0.10
_MARGIN = 0.12
_EDGE = 0.13
_BROW_TO_CHIN = 1.25
_NARROWEST = 0.66  # half the width without hair; the jaw of a turned head looks narrower
_LARGEST = 1e5  # pixels, of any value in a file


@dataclass(frozen=True)
class HeadShape:
    """A head: a turned ellipse whose upper half may be of another height than its lower one.

    Attributes:
        x, y: of the head's middle between crown and chin, in pixels of the photo.
        unit: half of the head's height without hair, in pixels.
        half_width: of the head without hair, in units.
        angle: how far it is turned to the picture's right, in radians.
    """

    x: float
    y: float
    unit: float
    half_width: float
    angle: float

    @classmethod
    def from_points(cls, points: Tensor) -> HeadShape:
        """Returns the shape of a face with these landmarks (68, 2) of the 300-W annotation."""
        brows, chin = points[17:27].mean(0), points[8]
        upwards = brows - chin
        unit = float(upwards.norm()) / _BROW_TO_CHIN
        up = upwards / upwards.norm()
        side = torch.stack([-up[1], up[0]])
        # The jaw's ends lie before the middle of a turned head.
        off = 0.6 * float(((points[0] + points[16]) / 2 - chin) @ side)
        x, y = (chin + up * unit + side * off).tolist()
        width = float((points[16] - points[0]).norm()) / 2 / unit
        return cls(x, y, unit, max(width, _NARROWEST), math.atan2(float(up[0]), -float(up[1])))

    def mask(self, x: Tensor, y: Tensor, margin: float = _MARGIN) -> Tensor:
        """Returns where head and hair are, in [0, 1], soft at the edge.

        Args:
            x, y: of one shape, in units and in the head's own axes, its middle at 0.
            margin: around head and hair, in units.
        """
        up, down = 1 + _HAIR + margin, 1 + margin
        across = x / (self.half_width + _HAIR + margin)
        along = torch.where(y < 0, y / up, y / down)
        return (0.5 - ((across**2 + along**2 + 1e-6).sqrt() - 1) / _EDGE).clamp(0, 1)


def read_shapes(path: Path) -> dict[str, HeadShape]:
    """Returns the shapes of photos, by "folder/name".

    Raises:
        PFStorerError: no such file, or another one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        shapes = {name: HeadShape(**shape) for name, shape in values.items()}
        numbers = [number for shape in shapes.values() for number in asdict(shape).values()]
        if not all(isinstance(n, int | float) and abs(n) < _LARGEST for n in numbers):
            raise ValueError("values that are no places of a picture")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PFStorerError(
            f"'{path}' holds no labels of heads ({first_line(error)}); write them with "
            "tools/label_heads.py."
        ) from error
    return shapes


def write_shapes(shapes: Mapping[str, HeadShape], path: Path) -> None:
    """Writes what `read_shapes` reads."""
    values = {name: asdict(shape) for name, shape in shapes.items()}
    path.write_text(json.dumps(values), encoding="utf-8")
