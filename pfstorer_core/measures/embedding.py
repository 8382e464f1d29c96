"""The network that tells persons apart: a small residual network with unit-length outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PFStorerError
from ..weights.networks import sizes_from

_UNSHUFFLE = 2  # pixels per axis that become channels of the first layer
_LARGEST = 4096  # of any size, so that a damaged file cannot ask for all memory


@dataclass(frozen=True)
class EmbeddingConfig:
    """Sizes of an EmbeddingNetwork.

    Attributes:
        size: height and width in pixels of the pictures that it sees.
        stem: channels at half that size.
        widths: channels of the stages, each at half the size of the one before.
        squeezed: channels at the last size that the output is computed from.
        features: length of the output.

    Raises:
        PFStorerError: sizes that no network can be built from.
    """

    size: int = 128
    stem: int = 32
    widths: tuple[int, ...] = (64, 96, 160)
    squeezed: int = 32
    features: int = 128

    def __post_init__(self) -> None:
        numbers = (self.size, self.stem, *self.widths, self.squeezed, self.features)
        if not all(isinstance(n, int) and 0 < n <= _LARGEST for n in numbers) or not self.widths:
            raise PFStorerError(f"The embedding's sizes must be from 1 to {_LARGEST}, got {self}.")
        if self.size % self.stride:
            raise PFStorerError(
                f"The embedding's size must be a multiple of {self.stride}, got {self}."
            )

    @property
    def stride(self) -> int:
        """Pixels of the picture per cell and axis of the last stage."""
        return _UNSHUFFLE * 2 ** len(self.widths)

    def to_dict(self) -> dict[str, Any]:
        """Returns the sizes as plain values that JSON keeps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EmbeddingConfig:
        """Returns the sizes that `to_dict` wrote.

        Raises:
            PFStorerError: an unknown name or an impossible size.
        """
        return sizes_from(cls, values, "The embedding's")


class _ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm2d(width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_out = nn.BatchNorm2d(width)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.relu(self.norm_in(x)))
        return x + self.conv_out(F.relu(self.norm_out(h)))


class EmbeddingNetwork(nn.Module):
    """Picture to a point on the unit sphere, near to those of the same person.

    The output is a linear map of all cells of the last stage, not of their mean: where a mole sits
    is part of who a person is.

    Args:
        config: sizes.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [
            nn.Conv2d(3 * _UNSHUFFLE**2, config.stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.stem),
            nn.ReLU(),
        ]
        width = config.stem
        for wider in config.widths:
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), _ResidualBlock(wider)]
            width = wider
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, config.squeezed, 1)]
        self.body = nn.Sequential(*layers)
        cells = (config.size // config.stride) ** 2
        self.head = nn.Sequential(
            nn.BatchNorm1d(config.squeezed * cells),
            nn.Linear(config.squeezed * cells, config.features),
            nn.BatchNorm1d(config.features),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, size, size) in [0, 1] -> (B, features) of unit length, float32."""
        h = F.pixel_unshuffle(images * 2 - 1, _UNSHUFFLE)  # (B, 12, size / 2, size / 2)
        h = self.body(h).flatten(1)  # (B, squeezed * cells)
        return F.normalize(self.head(h).float(), dim=1)  # (B, features)
