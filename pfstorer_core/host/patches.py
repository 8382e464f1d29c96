"""Runs a base restorer inside ComfyUI's own diffusion UNet, through the host's public hooks.

A keyed `DIFFUSION_MODEL` wrapper runs the encoder once per forward of the UNet, and a
`forward_timestep_embed_patch` handler computes the residual blocks with SFT in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.conds
import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    Downsample,
    ResBlock,
    TimestepBlock,
    Upsample,
    VideoResBlock,
    forward_timestep_embed,
)
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..errors import PFStorerError
from ..restorer import BaseRestorer
from ..sft import SFTBlock

KEY = "pfstorer"
LQ_COND = "pfstorer_lq_latent"  # the model condition, and so the keyword of the UNet's forward
_STEP = "pfstorer_step"
_FORWARD = "pfstorer_forward"
_PATCH = "forward_timestep_embed_patch"


@dataclass
class _Step:
    """Encoder features of one sampling step of `items` latents, per device.

    ComfyUI splits the conditions of a step into several forwards when memory is short; all of them
    see the same LQ latent and timestep, so the first one's features serve the others.
    """

    items: int
    features: dict[torch.device, list[Tensor]] = field(default_factory=dict)


@dataclass
class _Forward:
    """State of one forward of the UNet: what the handlers need, and the sites they visited."""

    blocks: dict[nn.Module, tuple[str, SFTBlock, Tensor]]
    visited: list[str] = field(default_factory=list)


class RestorerWrapper:
    """`DIFFUSION_MODEL` wrapper that encodes the LQ latent and lets the handlers apply SFT.

    Args:
        restorer: encoder and SFT blocks.
        lq_latent: (B, C, H, W) scaled LQ latent, or None where the sampler brings it as the model
            condition `LQ_COND`. The UNet's batch is k blocks of B items.
    """

    def __init__(self, restorer: BaseRestorer, lq_latent: Tensor | None = None) -> None:
        self.restorer = restorer
        self.lq_latent = lq_latent

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
        features = self._features(lq_latent.to(x), timesteps, x.shape[0], options)
        state = _Forward(_blocks(executor.class_obj, self.restorer, features))
        options[_FORWARD] = state
        options.pop("block", None)
        out = executor(x, timesteps, context, y, control, options, **kwargs)
        # The UNet notes the block it is in; without one, a step cache answered in its place.
        if "block" in options or state.visited:
            _check_visits(self.restorer.sites, state.visited, options)
        return out

    def _features(
        self, lq_latent: Tensor, timesteps: Tensor, batch: int, options: dict[str, Any]
    ) -> list[Tensor]:
        """Encodes each item once: the halves of a guided batch differ only in their context."""
        step: _Step | None = options.get(_STEP)
        # Another custom node may cut the batch into single items: those are encoded as they come.
        if step is not None and batch % step.items == 0:
            device = lq_latent.device
            if device not in step.features:
                step.features[device] = self.restorer(
                    lq_latent[: step.items], timesteps[: step.items]
                )
            return step.features[device]
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


class LQCondition:
    """`CALC_COND_BATCH` wrapper that gives every condition of a step the LQ latent.

    As a model condition, the latent is repeated over the batch, cropped to a condition's area and
    moved between devices by ComfyUI itself.

    Args:
        lq_latent: (B, C, H, W) LQ latent, scaled like the diffusion latents.
    """

    def __init__(self, lq_latent: Tensor) -> None:
        self.lq_latent = lq_latent

    def __call__(
        self,
        executor: Any,
        model: Any,
        conds: list[list[dict[str, Any]] | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        **kwargs: Any,
    ) -> list[Tensor]:
        """Runs the conditions of one step, x_in: (B, C, H, W)."""
        check_latent_size(self.lq_latent, x_in)
        lq_cond = comfy.conds.CONDNoiseShape(self.lq_latent)
        conds = [
            cond
            and [{**c, "model_conds": {**c.get("model_conds", {}), LQ_COND: lq_cond}} for c in cond]
            for cond in conds
        ]
        # Conditions with an area see their own crops, which cannot share features.
        if not any("area" in c for cond in conds if cond for c in cond):
            options = {**model_options.get("transformer_options", {}), _STEP: _Step(x_in.shape[0])}
            model_options = {**model_options, "transformer_options": options}
        return executor(model, conds, x_in, timestep, model_options, **kwargs)


def apply_sft(
    layer: Any, x: Tensor, emb: Tensor, context: Any, transformer_options: dict[str, Any], *_: Any
) -> Tensor:
    """Computes a residual block, with SFT between its last convolution and the skip sum.

    Args:
        layer: a `ResBlock` of the UNet.
        x: (B, C_in, H, W) features.
        emb: (B, C_emb) timestep embedding.

    Returns:
        (B, C_out, H, W).

    Source: StableSR (arXiv 2305.07015), section 3.1.
    """
    state: _Forward | None = transformer_options.get(_FORWARD)
    if state is None or layer not in state.blocks:
        return layer(x, emb)
    site, sft, features = state.blocks[layer]
    state.visited.append(site)
    h = layer.in_layers(x)  # (B, C_out, H, W)
    h = h + layer.emb_layers(emb).to(h.dtype)[:, :, None, None]
    h = sft(layer.out_layers(h), features)
    return layer.skip_connection(x) + h


def find_sft_sites(unet: Any, checkpoint: str = "the MODEL") -> dict[str, tuple[int, int]]:
    """Finds the residual blocks of a UNet that can carry SFT.

    Args:
        unet: ComfyUI's `UNetModel`.
        checkpoint: how an error shall call the UNet's file.

    Returns:
        Site name, such as "input_blocks.1.0", to (channels, level), where level is the number of
        downsamplings before the site.

    Raises:
        PFStorerError: the model is no UNet, or one whose blocks cannot be split at the skip sum.
    """
    if not all(hasattr(unet, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        raise PFStorerError(
            f"The diffusion model of {checkpoint} is a {type(unet).__name__}, but a restorer needs "
            "the UNet of Stable Diffusion 1.5 or 2.1; load that checkpoint."
        )
    sites: dict[str, tuple[int, int]] = {}
    level = 0
    stages: list[tuple[str, Any]] = [
        (f"input_blocks.{i}", stage) for i, stage in enumerate(unet.input_blocks)
    ]
    stages.append(("middle_block", unet.middle_block or ()))
    stages += [(f"output_blocks.{i}", stage) for i, stage in enumerate(unet.output_blocks)]
    for name, stage in stages:
        for i, layer in enumerate(stage):
            site = f"{name}.{i}"
            if isinstance(layer, ResBlock):
                _check_res_block(checkpoint, site, layer)
                sites[site] = (layer.out_channels, level)
            elif isinstance(layer, Downsample):
                level += 1
            elif isinstance(layer, Upsample):
                level -= 1
            elif isinstance(layer, SpatialVideoTransformer):
                raise PFStorerError(_unsupported(checkpoint, site, "is a video transformer"))
    return sites


def check_fit(unet: nn.Module, restorer: BaseRestorer, checkpoint: str = "the MODEL") -> None:
    """Checks that a restorer's SFT blocks fit the UNet.

    Args:
        unet: ComfyUI's `UNetModel`.
        restorer: encoder and SFT blocks.
        checkpoint: how an error shall call the UNet's file.

    Raises:
        PFStorerError: the restorer is made for another UNet.
    """
    found = find_sft_sites(unet, checkpoint)
    levels = len(restorer.encoder.config.channel_mult)
    name = restorer.info.name
    for site in restorer.sites:
        channels = restorer.sft(site).mlp_gamma.out_channels
        if site not in found:
            raise PFStorerError(
                f"Restorer '{name}' has an SFT block for {site}, which the UNet of {checkpoint} "
                "does not have; choose the checkpoint that the restorer was trained on."
            )
        if found[site][0] != channels:
            raise PFStorerError(
                f"Restorer '{name}' has {channels} channels at {site}, but the UNet of "
                f"{checkpoint} has {found[site][0]}; choose the checkpoint that the restorer was "
                "trained on."
            )
        if found[site][1] >= levels:
            raise PFStorerError(
                f"The encoder of restorer '{name}' has {levels} levels, too few for {site} in the "
                f"UNet of {checkpoint}; choose the checkpoint that the restorer was trained on."
            )


def restorer_options(unet: nn.Module, restorer: BaseRestorer, lq_latent: Tensor) -> dict[str, Any]:
    """Builds transformer options with which a bare UNet runs the restorer.

    `unet(x, timesteps, context, transformer_options=...)` is then differentiable with respect to
    the UNet, the restorer and the LQ latent, and `torch.compile` takes it in one graph. For
    training, outside a ModelPatcher.

    Args:
        unet: ComfyUI's `UNetModel`.
        restorer: encoder and SFT blocks, on the UNet's device.
        lq_latent: (B, C, H, W) scaled LQ latent; the UNet's batch is k blocks of B items.

    Raises:
        PFStorerError: the restorer does not fit the UNet, or this ComfyUI is too old.
    """
    check_host()
    check_fit(unet, restorer)
    return {
        "wrappers": {WrappersMP.DIFFUSION_MODEL: {KEY: [RestorerWrapper(restorer, lq_latent)]}},
        "patches": {_PATCH: [(ResBlock, apply_sft)]},
        "optimized_attention_override": _torch_attention,
    }


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
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, RestorerWrapper(restorer))
    patches = model.model_options["transformer_options"].get("patches", {}).get(_PATCH, [])
    if (ResBlock, apply_sft) not in patches:
        model.set_model_patch((ResBlock, apply_sft), _PATCH)
    return model


def set_lq_latent(model_patcher: Any, lq_latent: Tensor) -> Any:
    """Returns a clone of a restorer's MODEL that restores this LQ latent.

    Args:
        model_patcher: what `patch_model` returned, or a clone of it; stays as it is.
        lq_latent: (B, C, H, W) LQ latent, scaled like the diffusion latents.
    """
    model = model_patcher.clone()
    model.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, LQCondition(lq_latent))
    return model


def check_latent_size(lq_latent: Tensor, x: Tensor) -> None:
    """Raises PFStorerError unless both are of one height and width, in latent pixels."""
    if x.shape[2:] != lq_latent.shape[2:]:
        raise PFStorerError(
            f"The sampler's latent is {_size(x)} latent pixels, but the MODEL was conditioned on "
            f"an LQ image of {_size(lq_latent)}; connect the LATENT that 'Condition on LQ Image' "
            "gives to the sampler, or one of the same size."
        )


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
    options = {"patches": {_PATCH: [(_Probe, lambda *_: "patched")]}}
    return forward_timestep_embed([_Probe()], "layer", None, None, options) == "patched"


_PATCHES_REACH_EVERY_LAYER = _patches_reach_every_layer()


def _torch_attention(_: Any, *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's own attention: others that the host may choose ask for free memory at each call,
    which `torch.compile` cannot trace, or have no gradient."""
    return attention_pytorch(*args, **kwargs)


def _blocks(
    unet: nn.Module, restorer: BaseRestorer, features: Sequence[Tensor]
) -> dict[nn.Module, tuple[str, SFTBlock, Tensor]]:
    levels = find_sft_sites(unet)
    return {
        unet.get_submodule(site): (site, restorer.sft(site), features[levels[site][1]])
        for site in restorer.sites
    }


def _check_res_block(checkpoint: str, site: str, layer: Any) -> None:
    if isinstance(layer, VideoResBlock):
        raise PFStorerError(_unsupported(checkpoint, site, "is a video block"))
    for trait in ("updown", "use_scale_shift_norm", "exchange_temb_dims", "skip_t_emb"):
        if getattr(layer, trait, False):
            raise PFStorerError(_unsupported(checkpoint, site, f"uses {trait}"))


def _unsupported(checkpoint: str, site: str, reason: str) -> str:
    return (
        f"The block {site} in the UNet of {checkpoint} {reason}, which a restorer cannot steer; "
        "load a Stable Diffusion 1.5 or 2.1 checkpoint."
    )


def _check_visits(sites: Sequence[str], visited: list[str], options: dict[str, Any]) -> None:
    wrong = [site for site in sites if visited.count(site) != 1]
    if not wrong:
        return
    others = []
    for class_type, handler in options.get("patches", {}).get(_PATCH, []):
        if handler is apply_sft:
            break
        if issubclass(ResBlock, class_type):
            owner = handler if hasattr(handler, "__qualname__") else type(handler)
            others.append(f"{owner.__module__}.{owner.__qualname__}")
    cause = f"the handler {', '.join(others)}" if others else "another custom node"
    raise PFStorerError(
        f"The restorer must run once in each of its {len(sites)} blocks, but {cause} took over "
        f"{len(wrong)} of them ({wrong[0]} first); remove that custom node's patch from the MODEL."
    )


def _size(latent: Tensor) -> str:
    return f"{latent.shape[-1]} x {latent.shape[-2]}"
