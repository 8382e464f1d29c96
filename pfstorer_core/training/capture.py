"""Forward and backward of a network as one CUDA graph each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Captured(nn.Module):
    """Replays a network's forward and backward, captured at the first call.

    A small network keeps a GPU waiting for launches; a graph has one. Each later call in training
    mode must bring tensors of the first one's shapes; in evaluation mode the network runs as usual.

    Args:
        network: on a CUDA device; takes and gives tensors only.
        precision: type that it computes in, under autocast.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self._precision = precision
        self._captured = False

    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the network; float32 comes out."""
        enabled = self._precision != torch.float32
        # cached casts would be made outside the graph and freed under it
        with torch.autocast("cuda", self._precision, enabled=enabled, cache_enabled=False):
            if not self._captured and self.network.training:
                samples = tuple(x.detach().clone() for x in inputs)
                torch.cuda.make_graphed_callables(self.network, samples)
                self._captured = True
            return self.network(*inputs).float()
