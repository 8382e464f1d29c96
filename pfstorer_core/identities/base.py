"""What every method of personalization gives to the adapter and the host."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


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


@dataclass(frozen=True)
class Method:
    """A way to write a person into blocks that stand after those of a frozen UNet.

    Args:
        config: type of its sizes, see `BlockConfig`.
        block: type of its blocks.
    """

    config: type[Any]
    block: type[IdentityBlock]
