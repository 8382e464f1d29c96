"""The network that finds heads: a small convolutional one, one answer per four pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PFStorerError
from ..weights.networks import sizes_from

STRIDE = 4  # pixels per cell and axis
_LARGEST = 1024  # of any size, so that a damaged file cannot ask for all memory
_BOX_UNIT = 8.0  # pixels: a distance of exp(0)
_RARE = -4.0  # logit that the scores begin with, for most cells hold no head


@dataclass(frozen=True)
class HeadNetworkConfig:
    """Sizes of a HeadNetwork.

    Attributes:
        widths: channels at a half, a quarter and an eighth of the picture's size.
        blocks: residual blocks at a quarter and an eighth.
        features: channels that scores, boxes and masks are computed from.
        mask: side of a head's mask in texels.

    Raises:
        PFStorerError: sizes that no network can be built from.
    """

    widths: tuple[int, int, int] = (16, 32, 64)
    blocks: tuple[int, int] = (1, 3)
    features: int = 64
    mask: int = 16

    def __post_init__(self) -> None:
        numbers = (*self.widths, *self.blocks, self.features, self.mask)
        fits = len(self.widths) == 3 and len(self.blocks) == 2
        if not fits or not all(isinstance(n, int) and 0 < n <= _LARGEST for n in numbers):
            raise PFStorerError(
                f"The head detector's sizes must be from 1 to {_LARGEST}, got {self}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the sizes as plain values that JSON keeps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadNetworkConfig:
        """Returns the sizes that `to_dict` wrote.

        Raises:
            PFStorerError: an unknown name or an impossible size.
        """
        return sizes_from(cls, values, "The head detector's")


class HeadMaps(NamedTuple):
    """What the network says of each cell of pictures (B, 4, 4 h, 4 w).

    Attributes:
        scores: (B, h, w), logit that a head's middle is in the cell.
        boxes: (B, 4, h, w), distances in pixels from the cell's middle to the left, top, right and
            bottom of the head.
        features: (B, C, h, w), what `HeadNetwork.masks` takes of a cell.
    """

    scores: Tensor
    boxes: Tensor
    features: Tensor


def _layer(channels: int, width: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class _ResidualBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = _layer(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class HeadNetwork(nn.Module):
    """Picture to scores, boxes and masks of the heads whose size is within its range.

    It sees a fourth channel that is 1 inside the picture, so that the picture's border is no edge
    of an object.

    Args:
        config: sizes.

    Source: one point per object, CenterNet (arXiv 1904.07850); distances to four sides, FCOS
        (arXiv 1904.01355). Size, masks and training are ours.
    """

    def __init__(self, config: HeadNetworkConfig) -> None:
        super().__init__()
        self.config = config
        half, quarter, eighth = config.widths
        self.quarter = nn.Sequential(
            _layer(4, half, stride=2),
            _layer(half, quarter, stride=2),
            *(_ResidualBlock(quarter, 1) for _ in range(config.blocks[0])),
        )
        self.eighth = nn.Sequential(
            _layer(quarter, eighth, stride=2),
            *(_ResidualBlock(eighth, 1 + k) for k in range(config.blocks[1])),
            nn.Conv2d(eighth, quarter, 1),
        )
        self.joined = _layer(quarter, config.features)
        self.answers = nn.Conv2d(config.features, 5, 1)
        self.mask = nn.Linear(config.features, config.mask**2)
        with torch.no_grad():
            self.answers.weight[0].zero_()
            assert self.answers.bias is not None
            self.answers.bias[0].fill_(_RARE)

    def forward(self, pictures: Tensor) -> HeadMaps:
        """(B, 4, H, W), sides multiples of 8: RGB in [0, 1] and where the picture is, 0 or 1."""
        inside = pictures[:, 3:]
        x = torch.cat([(pictures[:, :3] * 2 - 1) * inside, inside], 1)
        fine = self.quarter(x)
        coarse = F.interpolate(self.eighth(fine), scale_factor=2.0, mode="nearest")
        features = self.joined(F.relu(fine + coarse))
        answers = self.answers(features).float()
        boxes = answers[:, 1:].clamp(-4, 4).exp() * _BOX_UNIT
        return HeadMaps(answers[:, 0], boxes, features)

    def masks(self, features: Tensor) -> Tensor:
        """(N, C) of cells -> (N, mask, mask) logits of the masks of their boxes."""
        side = self.config.mask
        return self.mask(features).float().unflatten(1, (side, side))
