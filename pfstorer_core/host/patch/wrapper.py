"""Runs a base restorer inside ComfyUI's own diffusion UNet, through the host's public hooks.

A keyed `DIFFUSION_MODEL` wrapper runs the encoder once per forward of the UNet, and the handlers of
`forward_timestep_embed_patch` compute the residual blocks with its modulation and add what the
personalization blocks of the applied identities give.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import PFStorerError
from ...restorers.steering import Steering
from ..sites import BLOCK_LAYERS, PATCH, find_sft_sites
from .additions import KeptAdditions, additions, trained_additions
from .applied import AppliedIdentity
from .handlers import FORWARD, HANDLERS, ForwardState
from .lq import LQ_COND, STEP, StepFeatures, check_latent_size
from .sampling import SAMPLING, SamplingMemory


class RestorerWrapper:
    """`DIFFUSION_MODEL` wrapper that encodes the LQ latent and lets the handlers modulate.

    Args:
        restorer: what modulates the residual blocks.
        lq_latent: (B, C, H, W) scaled LQ latent, or None where the sampler brings it as the model
            condition `LQ_COND`, or the restorer's own hooks have one. The UNet's batch is k blocks
            of B items.
        identities: what personalizes the result.
        checkpoint: whether to keep no activations for the backward pass (training).
        memory: of a training that leaves the restorer as it is: keeps its joined weights.
    """

    def __init__(
        self,
        restorer: Steering,
        lq_latent: Tensor | None = None,
        identities: Sequence[AppliedIdentity] = (),
        checkpoint: bool = False,
        memory: SamplingMemory | None = None,
    ) -> None:
        self.restorer = restorer
        self.lq_latent = lq_latent
        self.identities = tuple(identities)
        self.checkpoint = checkpoint
        self.memory = memory

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
        """Runs the UNet with the restorer.

        Args:
            executor: the host's executor, whose `class_obj` is the UNet.
            x: (B, C, H, W) noisy latents, scaled for the UNet.
            timesteps: (B,) in [0, 1000).

        Raises:
            PFStorerError: no LQ latent, one of another size, or another custom node's handler
                took over residual blocks that the restorer must run.
        """
        lq_latent = kwargs.pop(LQ_COND, self.lq_latent)
        if lq_latent is not None:
            check_latent_size(lq_latent, x)
        options = self.restorer.hooked(dict(transformer_options or {}), lq_latent, self.checkpoint)
        unet = executor.class_obj
        features = self._features(lq_latent, x, timesteps, options)
        added = additions(self.identities, unet, x, options, kwargs)
        state = ForwardState(self.restorer, self.checkpoint)
        levels = {site: level for site, (_, level) in find_sft_sites(unet).items()}
        sampling: SamplingMemory | None = options.get(SAMPLING)
        memory = sampling or self.memory
        if memory is not None:
            state.modulation = memory.modulation(self.restorer, levels, x)
        if sampling is not None and context is not None:
            state.kept = KeptAdditions(sampling, context)
        elif context is not None:
            state.kept = trained_additions(added, x, context)
        for site in self.restorer.sites:
            layer = unet.get_submodule(site)
            state.features[layer], state.sites[layer] = features[levels[site]], site
        for site, parts in added.items():
            layer = unet.get_submodule(site)
            state.additions[layer], state.sites[layer] = parts, site
        options[FORWARD] = state
        options.pop("block", None)
        out = executor(x, timesteps, context, y, control, options, **kwargs)
        # The UNet notes the block it is in; without one, a step cache answered in its place.
        if "block" in options or state.visited:
            _check_visits(list(state.sites.values()), state.visited, options)
        return out

    def _features(
        self, lq_latent: Tensor | None, x: Tensor, timesteps: Tensor, options: dict[str, Any]
    ) -> Sequence[Tensor]:
        """Encodes each item once: the halves of a guided batch differ only in their context."""
        if not self.restorer.sites:
            return ()
        if lq_latent is None:
            raise PFStorerError(
                f"The MODEL of restorer '{self.restorer.info.name}' was sampled without an LQ "
                "image; put 'Condition on LQ Image' before the sampler, or use 'Tiled Restore'."
            )
        lq_latent, batch = lq_latent.to(x), len(x)
        step: StepFeatures | None = options.get(STEP)
        # Another custom node may cut the batch into single items: those are encoded as they come.
        if step is not None and batch % step.items == 0:
            return step.of(self.restorer, lq_latent[: step.items], timesteps[: step.items])
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
        """Runs the UNet with the restorer."""
        return super().__call__(*args, **kwargs)


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
