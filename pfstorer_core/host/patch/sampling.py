"""What holds for one sampling or training: made at its first step, gone when it ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...restorers.steering import Modulation, Steering
from .ahead import AheadMemory

SAMPLING = "pfstorer_sampling"  # of the memory in the options, and of what puts it there
_MOST_TEXTS = 4  # those of both halves of guidance, in two sizes of tile batches


@dataclass
class SamplingMemory:
    """Joined weights, and what does not change with the step. By device, for hosts with several.

    No plain dict: the host copies those in its options at every step.

    Attributes:
        ahead: features of coming steps.
    """

    ahead: AheadMemory = field(default_factory=AheadMemory)
    _modulations: dict[Hashable, Modulation | None] = field(default_factory=dict)
    _texts: dict[torch.device, list[Tensor]] = field(default_factory=dict)
    _prepared: dict[Hashable, dict[Hashable, Any]] = field(default_factory=dict)

    def modulation(
        self, restorer: Steering, levels: Mapping[str, int], x: Tensor
    ) -> Modulation | None:
        """Returns the restorer's faster `modulate`, for the device of x and the type computed in.

        None where it has none, or where it is being trained.
        """
        dtype = computing_type(x)
        key = id(restorer), x.device, dtype
        if key not in self._modulations:
            trained = any(p.requires_grad for p in restorer.parameters())
            weights_of = functools.partial(weights_on, device=x.device, dtype=dtype)
            self._modulations[key] = None if trained else restorer.prepare(levels, weights_of)
        return self._modulations[key]

    def text(self, context: Tensor) -> Hashable:
        """Returns a key under which to keep what was computed from a text embedding.

        The host makes its tensor anew at each step, so that only what it holds tells.

        Args:
            context: (B, tokens, width).
        """
        known = self._texts.setdefault(context.device, [])
        for text in known:
            if text is context or (
                text.shape == context.shape
                and text.dtype == context.dtype
                and torch.equal(text, context)
            ):
                return id(text)
        if len(known) == _MOST_TEXTS:
            self._prepared.pop(id(known.pop(0)), None)
        known.append(context)
        return id(context)

    def prepared(self, text: Hashable, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what `make` gave the first time for a text and a further key."""
        kept = self._prepared.setdefault(text, {})
        if key not in kept:
            kept[key] = make()
        return kept[key]


class SamplingScope:
    """`OUTER_SAMPLE` wrapper that gives each sampling a memory.

    The sampler's options are a copy that lives as long as the sampling.
    """

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Runs the sampling."""
        options = executor.class_obj.model_options.setdefault("transformer_options", {})
        options[SAMPLING] = SamplingMemory()
        return executor(*args, **kwargs)


def computing_type(x: Tensor) -> torch.dtype:
    """Returns the type that layers compute in for features like x: its own, or autocast's."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def weights_on(
    layer: nn.Module, *, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Returns a layer's weight and bias on a device, wherever the host's memory manager has them.

    The tensors may be those that the layer, or the next one, uses.
    """
    if hasattr(layer, "comfy_cast_weights"):
        found: tuple[Tensor, Tensor | None] = comfy.ops.cast_bias_weight(
            layer, dtype=dtype, device=device, bias_dtype=dtype
        )
        return found
    weight, bias = (getattr(layer, name, None) for name in ("weight", "bias"))
    assert isinstance(weight, Tensor)
    return weight.to(device, dtype), bias.to(device, dtype) if isinstance(bias, Tensor) else None
