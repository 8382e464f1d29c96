"""What every method of personalization gives to the adapter and the host."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..weights.layers import WeightsOf

# of what a block gives: a number, and a map (B or 1, 1, H or 1, W or 1)
Factor = tuple[float, Tensor | None]
# F (B, C, H, W) of a site to F + delta
Personalized = Callable[[Tensor], Tensor]


class BlockConfig(Protocol):
    """Sizes of a method's blocks: a frozen dataclass of plain values, checked when it is made.

    Fields that have the name of one of `IdentityTrainingConfig` get its value in a training.

    Attributes:
        reference_grid: cells a side to which the features of references are averaged at most.
    """

    @property
    def reference_grid(self) -> int: ...


class IdentityBlock(nn.Module, abc.ABC):
    """Computes what a person's identity adds to the output F of one block of the UNet.

    Args:
        channels: channels of the UNet's features, a multiple of 32.
        context_dim: width of the text embedding.
        config: sizes, of the method's `config` type.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.
    """

    @abc.abstractmethod
    def __init__(
        self,
        channels: int,
        context_dim: int,
        config: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__()

    @abc.abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Draws starting weights under which the block adds zero; for layers of `torch.nn`."""

    @abc.abstractmethod
    def forward(self, h: Tensor, context: Tensor, reference: Tensor | None = None) -> Tensor:
        """Returns what is added to F.

        Args:
            h: (B, C, H, W) output F of the UNet block.
            context: (B, tokens, context_dim) text embedding.
            reference: (1 or B, N, C) tokens of `block.reference_tokens`; None without references.

        Returns:
            (B, C, H, W), of the type of `h`.
        """

    @classmethod
    def prepare(
        cls, parts: Sequence[Shown], weights_of: WeightsOf, dtype: torch.dtype
    ) -> Prepared | None:
        """Returns a faster form of one site's blocks, for one sampling.

        A method need not have one: None leaves it at `forward`.

        Args:
            parts: the site's blocks of one or several people. Where None is returned for several,
                each is asked for alone.
            weights_of: gives the weights, which may be copied and joined.
            dtype: of the features.
        """
        return None

    @classmethod
    def prepare_training(
        cls, parts: Sequence[Shown], batch: int, dtype: torch.dtype
    ) -> Sequence[Personalized] | None:
        """Returns a faster form of the blocks of all sites, for one forward of a training.

        It is differentiable with respect to features and weights. A method need not have one: None
        leaves it at `forward`.

        Args:
            parts: the blocks of one person, with layers of `torch.nn`; all have the same text, of
                one item, which holds for all.
            batch: items of the forward.
            dtype: of the features; the weights may be of another.
        """
        return None


@dataclass(frozen=True)
class Shown:
    """A block and what it attends to, which stays the same for many steps.

    Args:
        block: one person's at a site.
        context: (B, tokens, context_dim) text embedding.
        reference: (1 or B, N, C) tokens of references; None without any.
    """

    block: IdentityBlock
    context: Tensor
    reference: Tensor | None = None


class Prepared(Protocol):
    """Blocks of one site, ready for many steps."""

    def __call__(self, h: Tensor, into: Tensor, factors: Sequence[Factor]) -> Tensor:
        """Returns `into` + sum of factor * delta(h), per person.

        Args:
            h: (B, C, H, W) output F of the UNet block.
            into: (B, C, H, W), `h` or `h` with what others added.
            factors: per part.
        """


@dataclass(frozen=True)
class Method:
    """A way to write a person into blocks that stand after those of a frozen UNet.

    Args:
        config: type of its sizes, see `BlockConfig`.
        block: type of its blocks.
    """

    config: type[Any]
    block: type[IdentityBlock]
