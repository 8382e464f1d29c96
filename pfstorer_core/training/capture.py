"""Forward and backward of a network as one CUDA graph each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..lack_of_memory import lacks_memory

log = logging.getLogger(__name__)


# Replaces a module's forward by a replay of it, for inputs like those given
Capture = Callable[[nn.Module, tuple[Tensor, ...]], object]


class CudaGraphs:
    """Captures modules as CUDA graphs that share memory.

    They may, because each one's backward ends before another begins.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, module: nn.Module, samples: tuple[Tensor, ...]) -> None:
        """Captures forward and backward of a module."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True, pool=self._pool)


class Captured(nn.Module):
    """Replays a network's forward and backward, captured at the first call of each kind.

    A small network keeps a GPU waiting for launches; a graph has one. Calls in training mode are
    of one kind if the same inputs are given, which then must have the first one's shapes; so a
    network with and without a reference has two graphs, in the same memory. In evaluation mode, and
    where a graph finds no memory, the network runs as usual.

    Args:
        network: takes tensors and None, and gives a tensor; on a CUDA device for `CudaGraphs`.
        precision: type that it computes in, under autocast.
        capture: how to capture.
    """

    def __init__(
        self, network: nn.Module, precision: torch.dtype, capture: Capture | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self._precision = precision
        self._variants: dict[tuple[bool, ...], _Variant] = {}
        self._capture = capture or CudaGraphs()
        self._too_small = False

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """Runs the network; float32 comes out."""
        enabled = self._precision != torch.float32
        # cached casts would be made outside the graph and freed under it
        kind = next(self.network.parameters()).device.type
        with torch.autocast(kind, self._precision, enabled=enabled, cache_enabled=False):
            if self.network.training and not self._too_small:
                given = [x for x in inputs if x is not None]
                variant = self._variant(tuple(x is not None for x in inputs), given)
                if variant is not None:
                    found: Tensor = variant(*given)
                    return found.float()
            found = self.network(*inputs)
            return found.float()

    def _variant(self, kind: tuple[bool, ...], given: list[Tensor]) -> _Variant | None:
        if kind not in self._variants:
            variant = _Variant(self.network, kind)
            samples = tuple(x.detach().clone() for x in given)
            try:
                self._capture(variant, samples)
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                self._too_small = True
            else:
                self._variants[kind] = variant
        if self._too_small:  # after the handler, because the error holds on to tensors
            self._variants.clear()
            torch.cuda.empty_cache()
            log.warning("Too little GPU memory to capture the training; it goes on uncaptured.")
            return None
        return self._variants[kind]


class _Variant(nn.Module):
    """A network as a function of those inputs that are given, with what is trained alone."""

    def __init__(self, network: nn.Module, kind: tuple[bool, ...]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(p for p in network.parameters() if p.requires_grad)
        self._run = network.forward  # no module of this one, which would bring all its parameters
        self._kind = kind

    def forward(self, *given: Tensor) -> Tensor:
        left = iter(given)
        found: Tensor = self._run(*(next(left) if there else None for there in self._kind))
        return found
