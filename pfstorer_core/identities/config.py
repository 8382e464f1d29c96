"""Sizes of the personalization blocks of one adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PFStorerError


@dataclass(frozen=True)
class PersonalizationConfig:
    """Sizes of the blocks of one adapter, for UNets of any width.

    Attributes:
        min_width: least width of the bottleneck, in which attention and MLP work.
        reduction: the bottleneck has channels // reduction features where that is more.
        head_dim: features of an attention head; widths are rounded up to a multiple of it.
        tokens: learned identity tokens of each block; 0 for none.
        mlp_ratio: hidden width of the MLP over that of the bottleneck.
        reference_grid: reference features are averaged to at most so many cells a side.
        learned_gamma: whether gamma is learned; else it stays 1.

    Raises:
        PFStorerError: a size that makes no sense.
    """

    min_width: int = 128
    reduction: int = 10
    head_dim: int = 32
    tokens: int = 16
    mlp_ratio: int = 2
    reference_grid: int = 16
    learned_gamma: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (
            ("min_width", 1, 4096),
            ("reduction", 1, 4096),
            ("head_dim", 1, 1024),
            ("tokens", 0, 4096),
            ("mlp_ratio", 1, 64),
            ("reference_grid", 1, 256),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise PFStorerError(f"{name} is {value!r}; give a whole number {low} to {high}.")
        if not isinstance(self.learned_gamma, bool):
            raise PFStorerError(f"learned_gamma is {self.learned_gamma!r}; give true or false.")

    def width(self, channels: int) -> int:
        """Returns the bottleneck's width for a block of so many channels."""
        width = max(self.min_width, channels // self.reduction)
        return -(-width // self.head_dim) * self.head_dim
