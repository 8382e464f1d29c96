"""Runs a restorer in a bare UNet, for trainings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch, get_attn_precision
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...restorers.steering import Steering
from ..base import RESTORER_KEY
from ..sites import PATCH, check_fit
from .applied import AppliedIdentity
from .handlers import HANDLERS, check_host
from .sampling import SamplingMemory
from .wrapper import RestorerWrapper


def restorer_options(
    unet: nn.Module,
    restorer: Steering,
    lq_latent: Tensor,
    identities: Sequence[AppliedIdentity] = (),
    checkpoint: bool = False,
    memory: SamplingMemory | None = None,
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
        memory: keeps a frozen restorer's joined weights between calls.

    Raises:
        PFStorerError: the restorer does not fit the UNet, or this ComfyUI is too old.
    """
    check_host()
    check_fit(unet, restorer)
    wrapper = RestorerWrapper(restorer, lq_latent, identities, checkpoint, memory)
    return {
        "wrappers": {WrappersMP.DIFFUSION_MODEL: {RESTORER_KEY: [wrapper]}},
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
