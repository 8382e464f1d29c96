"""Runs a base restorer inside ComfyUI's own diffusion UNet, through the host's public hooks.

A keyed `DIFFUSION_MODEL` wrapper runs the encoder once per forward of the UNet, and
`forward_timestep_embed_patch` handlers compute the residual blocks with SFT in them and add what
the personalization blocks of the applied identities give.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.modules.attention import (
    SpatialTransformer,
    attention_pytorch,
    get_attn_precision,
)
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    ResBlock,
    TimestepBlock,
    forward_timestep_embed,
)
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import PFStorerError
from ..restorer import BaseRestorer
from ..sft import SFTBlock
from .identities import (
    IDENTITY_KEY,
    Addition,
    AppliedIdentity,
    IdentityMasks,
    ReferenceMemory,
    add_identities,
    additions,
)
from .lq import LQ_COND, STEP, LQCondition, StepFeatures, check_latent_size
from .sites import BLOCK_LAYERS, PATCH, check_fit, find_sft_sites

KEY = "pfstorer"
_FORWARD = "pfstorer_forward"


@dataclass
class _Forward:
    """State of one forward of the UNet: what the handlers need, and the sites they visited."""

    sites: dict[nn.Module, str]
    sft: dict[nn.Module, tuple[SFTBlock, Tensor]]
    additions: dict[nn.Module, list[Addition]]
    checkpoint: bool
    visited: list[str] = field(default_factory=list)

    def run(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Calls a part of the UNet; with checkpointing, its activations are not kept."""
        if self.checkpoint:
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)


class RestorerWrapper:
    """`DIFFUSION_MODEL` wrapper that encodes the LQ latent and lets the handlers apply SFT.

    Args:
        restorer: encoder and SFT blocks.
        lq_latent: (B, C, H, W) scaled LQ latent, or None where the sampler brings it as the model
            condition `LQ_COND`. The UNet's batch is k blocks of B items.
        identities: what personalizes the result.
        checkpoint: whether to keep no activations for the backward pass (training).
    """

    def __init__(
        self,
        restorer: BaseRestorer,
        lq_latent: Tensor | None = None,
        identities: Sequence[AppliedIdentity] = (),
        checkpoint: bool = False,
    ) -> None:
        self.restorer = restorer
        self.lq_latent = lq_latent
        self.identities = tuple(identities)
        self.checkpoint = checkpoint

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Runs the UNet with SFT.

        Args:
            executor: the host's executor, whose `class_obj` is the UNet.
            x: (B, C, H, W) noisy latents, scaled for the UNet.
            timesteps: (B,) in [0, 1000).

        Raises:
            PFStorerError: no LQ latent, one of another size, or another custom node's handler
                took over residual blocks that the restorer must run.
        """
        options = dict(transformer_options or {})
        lq_latent = kwargs.pop(LQ_COND, self.lq_latent)
        if lq_latent is None:
            raise PFStorerError(
                f"The MODEL of restorer '{self.restorer.info.name}' was sampled without an LQ "
                "image; put 'Condition on LQ Image' before the sampler, or use 'Tiled Restore'."
            )
        check_latent_size(lq_latent, x)
        unet = executor.class_obj
        features = self._features(lq_latent.to(x), timesteps, x.shape[0], options)
        added = additions(self.identities, unet, x, options, kwargs)
        state = _Forward({}, {}, {}, self.checkpoint)
        for site, (sft, feature) in _sft_blocks(unet, self.restorer, features).items():
            layer = unet.get_submodule(site)
            state.sft[layer], state.sites[layer] = (sft, feature), site
        for site, parts in added.items():
            layer = unet.get_submodule(site)
            state.additions[layer], state.sites[layer] = parts, site
        options[_FORWARD] = state
        options.pop("block", None)
        out = executor(x, timesteps, context, y, control, options, **kwargs)
        # The UNet notes the block it is in; without one, a step cache answered in its place.
        if "block" in options or state.visited:
            _check_visits(list(state.sites.values()), state.visited, options)
        return out

    def _features(
        self, lq_latent: Tensor, timesteps: Tensor, batch: int, options: dict[str, Any]
    ) -> list[Tensor]:
        """Encodes each item once: the halves of a guided batch differ only in their context."""
        step: StepFeatures | None = options.get(STEP)
        # Another custom node may cut the batch into single items: those are encoded as they come.
        if step is not None and batch % step.items == 0:
            features = step.get(lq_latent.device)
            if features is None:
                features = self.restorer(lq_latent[: step.items], timesteps[: step.items])
                step.put(lq_latent.device, features)
            return features
        items = lq_latent.shape[0]
        if batch == items:
            return self.restorer(lq_latent, timesteps)
        if batch % items:
            raise PFStorerError(
                f"The UNet got a batch of {batch} for an LQ latent of {items} items; "
                f"use a batch that is a multiple of {items}."
            )
        blocks = timesteps.expand(batch).unflatten(0, (-1, items))  # (k, B)
        if bool((blocks == blocks[0]).all()):
            return self.restorer(lq_latent, blocks[0])
        return self.restorer(lq_latent.repeat(batch // items, 1, 1, 1), timesteps)


class SampledRestorer(RestorerWrapper):
    """The wrapper of a MODEL, which `torch.compile` leaves alone.

    ComfyUI's compile node makes a graph once and drops what would notice a change in the
    transformer options, where LQ features, identities and their strengths lie: later runs would get
    those of the first. So the UNet under a restorer is not compiled.
    """

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Runs the UNet with SFT."""
        return super().__call__(*args, **kwargs)


def compile_note(model_patcher: Any) -> str | None:
    """Returns what to tell the user where a node has compiled a restorer's MODEL."""
    if not model_patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
        return None
    return "torch.compile does not speed up a MODEL with a restorer, which runs as without it"


def run_res_block(
    layer: Any, x: Tensor, emb: Tensor, context: Any, transformer_options: dict[str, Any], *_: Any
) -> Tensor:
    """Computes a residual block, with SFT between its last convolution and the skip sum.

    Args:
        layer: a `ResBlock` of the UNet.
        x: (B, C_in, H, W) features.
        emb: (B, C_emb) timestep embedding.
        context: (B, tokens, width) text embedding.

    Returns:
        (B, C_out, H, W).

    Source: StableSR (arXiv 2305.07015), section 3.1.
    """
    state: _Forward | None = transformer_options.get(_FORWARD)
    if state is None or layer not in state.sites:
        return layer(x, emb)
    state.visited.append(state.sites[layer])
    if layer in state.sft:
        h = state.run(_res_block_with_sft, layer, x, emb, *state.sft[layer])
    else:
        h = state.run(layer, x, emb)
    return state.run(add_identities, h, context, state.additions.get(layer, []))


def run_transformer(
    layer: Any, x: Tensor, emb: Tensor, context: Any, transformer_options: dict[str, Any], *_: Any
) -> Tensor:
    """Computes a spatial transformer of the UNet and adds the identities' parts, (B, C, H, W)."""
    state: _Forward | None = transformer_options.get(_FORWARD)
    if state is None:
        h = layer(x, context, transformer_options)
    else:
        h = state.run(layer, x, context, transformer_options)
    if "transformer_index" in transformer_options:
        transformer_options["transformer_index"] += 1
    if state is None or layer not in state.sites:
        return h
    state.visited.append(state.sites[layer])
    return state.run(add_identities, h, context, state.additions[layer])


HANDLERS = ((ResBlock, run_res_block), (SpatialTransformer, run_transformer))


def _res_block_with_sft(
    layer: Any, x: Tensor, emb: Tensor, sft: SFTBlock, features: Tensor
) -> Tensor:
    h = layer.in_layers(x)  # (B, C_out, H, W)
    h = h + layer.emb_layers(emb).to(h.dtype)[:, :, None, None]
    # Other nodes may work at a smaller size in some blocks (PatchModelAddDownscale).
    if features.shape[2:] != h.shape[2:]:
        features = F.interpolate(features, h.shape[2:], mode="bilinear")
    h = sft(layer.out_layers(h), features)
    return layer.skip_connection(x) + h


def restorer_options(
    unet: nn.Module,
    restorer: BaseRestorer,
    lq_latent: Tensor,
    identities: Sequence[AppliedIdentity] = (),
    checkpoint: bool = False,
) -> dict[str, Any]:
    """Builds transformer options with which a bare UNet runs the restorer.

    `unet(x, timesteps, context, transformer_options=...)` is then differentiable with respect to
    the UNet, the restorer and the LQ latent, and `torch.compile` takes it in one graph. For
    training, outside a ModelPatcher.

    Args:
        unet: ComfyUI's `UNetModel`.
        restorer: encoder and SFT blocks, on the UNet's device.
        lq_latent: (B, C, H, W) scaled LQ latent; the UNet's batch is k blocks of B items.
        identities: what personalizes the prediction.
        checkpoint: whether to recompute activations in the backward pass, for less memory.

    Raises:
        PFStorerError: the restorer does not fit the UNet, or this ComfyUI is too old.
    """
    check_host()
    check_fit(unet, restorer)
    wrapper = RestorerWrapper(restorer, lq_latent, identities, checkpoint)
    return {
        "wrappers": {WrappersMP.DIFFUSION_MODEL: {KEY: [wrapper]}},
        "patches": {PATCH: list(HANDLERS)},
        "optimized_attention_override": trainable_attention,
    }


def trainable_attention(
    chosen: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *args: Any,
    attn_precision: torch.dtype | None = None,
    **kwargs: Any,
) -> Tensor:
    """The host's attention, or PyTorch's in place of one that cannot be trained through.

    Others have no gradient, or ask for the free memory at each call, which `torch.compile` cannot
    trace. Where the host computes them in a finer type (`attn_precision`), so does this.
    """
    if getattr(chosen, "__wrapped__", chosen) is attention_pytorch.__wrapped__:
        return chosen(q, k, v, *args, attn_precision=attn_precision, **kwargs)
    finer = get_attn_precision(attn_precision, q.dtype) or q.dtype
    return attention_pytorch(q.to(finer), k.to(finer), v.to(finer), *args, **kwargs).to(q.dtype)


def patch_model(model_patcher: Any, restorer: BaseRestorer) -> Any:
    """Returns a clone of a MODEL whose UNet runs the restorer, once it is given an LQ latent.

    Args:
        model_patcher: ComfyUI's `ModelPatcher`; stays as it is.
        restorer: encoder and SFT blocks.

    Raises:
        PFStorerError: the restorer does not fit the UNet, or this ComfyUI is too old.
    """
    check_host()
    check_fit(model_patcher.model.diffusion_model, restorer)
    model = model_patcher.clone()
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, SampledRestorer(restorer))
    patches = model.model_options["transformer_options"].get("patches", {}).get(PATCH, [])
    for handler in HANDLERS:
        if handler not in patches:
            model.set_model_patch(handler, PATCH)
    return model


def restorer_wrapper(model_patcher: Any) -> RestorerWrapper:
    """Returns the wrapper of a restorer's MODEL.

    Raises:
        PFStorerError: the MODEL has no restorer.
    """
    found = model_patcher.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY)
    if not found:
        raise PFStorerError(
            "The MODEL has no restorer; connect the MODEL that 'Load Base Restorer' gives."
        )
    return found[0]


def set_identities(model_patcher: Any, identities: Sequence[AppliedIdentity]) -> Any:
    """Returns a clone of a restorer's MODEL with these identities in place of those it had.

    Their adapters are loaded beside the MODEL under ComfyUI's memory manager.
    """
    restorer = restorer_wrapper(model_patcher).restorer
    model = model_patcher.clone()
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    wrapper = SampledRestorer(restorer, identities=identities)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, wrapper)
    for kind, make in (
        (WrappersMP.CALC_COND_BATCH, IdentityMasks),
        (WrappersMP.OUTER_SAMPLE, ReferenceMemory),
    ):
        model.remove_wrappers_with_key(kind, IDENTITY_KEY)
        model.add_wrapper_with_key(kind, IDENTITY_KEY, make(identities))
    patchers = [identity.patcher for identity in identities if identity.patcher is not None]
    model.set_additional_models(IDENTITY_KEY, patchers)
    return model


def set_lq_latent(model_patcher: Any, lq_latent: Tensor, encoder_interval: int = 1) -> Any:
    """Returns a clone of a restorer's MODEL that restores this LQ latent.

    Args:
        model_patcher: what `patch_model` returned, or a clone of it; stays as it is.
        lq_latent: (B, C, H, W) LQ latent, scaled like the diffusion latents.
        encoder_interval: see `LQCondition`.
    """
    model = model_patcher.clone()
    for kind in (WrappersMP.CALC_COND_BATCH, WrappersMP.OUTER_SAMPLE):
        model.remove_wrappers_with_key(kind, KEY)
    condition = LQCondition(lq_latent, encoder_interval)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, condition)
    return model


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


def _sft_blocks(
    unet: nn.Module, restorer: BaseRestorer, features: Sequence[Tensor]
) -> dict[str, tuple[SFTBlock, Tensor]]:
    levels = find_sft_sites(unet)
    return {site: (restorer.sft(site), features[levels[site][1]]) for site in restorer.sites}


def _check_visits(sites: Sequence[str], visited: list[str], options: dict[str, Any]) -> None:
    wrong = [site for site in sites if visited.count(site) != 1]
    if not wrong:
        return
    others = []
    for class_type, handler in options.get("patches", {}).get(PATCH, []):
        if (class_type, handler) in HANDLERS:
            break
        if any(issubclass(layer, class_type) for layer in BLOCK_LAYERS):
            owner = handler if hasattr(handler, "__qualname__") else type(handler)
            others.append(f"{owner.__module__}.{owner.__qualname__}")
    cause = f"the handler {', '.join(others)}" if others else "another custom node"
    raise PFStorerError(
        f"The restorer must run once in each of its {len(sites)} blocks, but {cause} took over "
        f"{len(wrong)} of them ({wrong[0]} first); remove that custom node's patch from the MODEL."
    )
