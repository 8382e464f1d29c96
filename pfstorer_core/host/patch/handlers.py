"""Handlers that compute the layers of the UNet with the restorer and identities in them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    ResBlock,
    TimestepBlock,
    forward_timestep_embed,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...errors import PFStorerError
from ...restorers.steering import Modulation, Steering
from ..sites import PATCH
from .additions import Addition, KeptAdditions, TrainedAdditions, add_identities

FORWARD = "pfstorer_forward"


@dataclass
class ForwardState:
    """State of one forward of the UNet: what the handlers need, and the sites they visited."""

    restorer: Steering
    checkpoint: bool
    kept: KeptAdditions | TrainedAdditions | None = None
    modulation: Modulation | None = None
    shared: dict[Any, Tensor] = field(default_factory=dict)
    embedding: tuple[Tensor, Tensor] | None = None
    sites: dict[nn.Module, str] = field(default_factory=dict)
    features: dict[nn.Module, Tensor] = field(default_factory=dict)
    additions: dict[nn.Module, list[Addition]] = field(default_factory=dict)
    visited: list[str] = field(default_factory=list)

    def modulate(self, site: str, h: Tensor, features: Tensor) -> Tensor:
        """Computes what the restorer makes of a residual block's features."""
        if self.modulation is None:
            return self.restorer.modulate(site, h, features)
        # What is shared must not depend on which site came first in a backward pass.
        return self.modulation(site, h, features, {} if self.checkpoint else self.shared)

    def add(self, h: Tensor, context: Tensor, parts: list[Addition]) -> Tensor:
        """Adds what identities give to a block."""
        if self.kept is None:
            return add_identities(h, context, parts)
        return self.kept.add(h, context, parts)

    def activated(self, layer: Any, emb: Tensor) -> Tensor:
        """Returns the timestep embedding as a residual block's linear layer takes it.

        All blocks begin with the same activation, which is so computed once.
        """
        if self.embedding is None or self.embedding[0] is not emb:
            self.embedding = emb, layer.emb_layers[0](emb)
        return self.embedding[1]

    def run(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Calls a part of the UNet; with checkpointing, its activations are not kept."""
        if self.checkpoint:
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)


def run_res_block(
    layer: Any, x: Tensor, emb: Tensor, context: Any, transformer_options: dict[str, Any], *_: Any
) -> Tensor:
    """Computes a residual block, modulated between its last convolution and the skip sum.

    Args:
        layer: a `ResBlock` of the UNet.
        x: (B, C_in, H, W) features.
        emb: (B, C_emb) timestep embedding.
        context: (B, tokens, width) text embedding.

    Returns:
        (B, C_out, H, W).

    Source: StableSR (arXiv 2305.07015), section 3.1.
    """
    state: ForwardState | None = transformer_options.get(FORWARD)
    if state is None or layer not in state.sites:
        return layer(x, emb)
    site = state.sites[layer]
    state.visited.append(site)
    if layer in state.features:
        activated = state.activated(layer, emb)
        h = state.run(_modulated_res_block, layer, x, activated, state, state.features[layer])
    else:
        h = state.run(layer, x, emb)
    return state.run(state.add, h, context, state.additions.get(layer, []))


def run_transformer(
    layer: Any, x: Tensor, emb: Tensor, context: Any, transformer_options: dict[str, Any], *_: Any
) -> Tensor:
    """Computes a spatial transformer of the UNet and adds the identities' parts, (B, C, H, W)."""
    state: ForwardState | None = transformer_options.get(FORWARD)
    if state is None:
        h = layer(x, context, transformer_options)
    else:
        h = state.run(layer, x, context, transformer_options)
    if "transformer_index" in transformer_options:
        transformer_options["transformer_index"] += 1
    if state is None or layer not in state.sites:
        return h
    state.visited.append(state.sites[layer])
    return state.run(state.add, h, context, state.additions[layer])


HANDLERS = ((ResBlock, run_res_block), (SpatialTransformer, run_transformer))


def _modulated_res_block(
    layer: Any, x: Tensor, activated: Tensor, state: ForwardState, features: Tensor
) -> Tensor:
    h = layer.in_layers(x)  # (B, C_out, H, W)
    h = h + layer.emb_layers[1](activated).to(h.dtype)[:, :, None, None]
    # Other nodes may work at a smaller size in some blocks (PatchModelAddDownscale).
    if features.shape[2:] != h.shape[2:]:
        features = F.interpolate(features, h.shape[2:], mode="bilinear")
    h = state.modulate(state.sites[layer], layer.out_layers(h), features)
    return layer.skip_connection(x) + h


def check_host() -> None:
    """Raises PFStorerError if this ComfyUI does not offer every UNet layer to patches."""
    if not _PATCHES_REACH_EVERY_LAYER:
        raise PFStorerError(
            "This ComfyUI does not let custom nodes patch the residual blocks of the UNet; "
            "update ComfyUI to 0.20.1 or newer."
        )


class _Probe(TimestepBlock):
    def forward(self, x: Any, emb: Any) -> Any:
        return x


def _patches_reach_every_layer() -> bool:
    # Versions before 0.20 offer only layers that they do not know.
    options = {"patches": {PATCH: [(_Probe, lambda *_: "patched")]}}
    return forward_timestep_embed([_Probe()], "layer", None, None, options) == "patched"


_PATCHES_REACH_EVERY_LAYER = _patches_reach_every_layer()
