"""A trainable UNet built from nothing."""

from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from torch import nn

from ...errors import PFStorerError


class TorchLayers:
    """Layers of `torch.nn` under the names that ComfyUI's UNet asks for."""

    Linear = nn.Linear
    Conv2d = nn.Conv2d
    GroupNorm = nn.GroupNorm
    LayerNorm = nn.LayerNorm

    @staticmethod
    def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Conv2d:
        if dims != 2:
            raise PFStorerError(f"The UNet has {dims} dimensions, but a restorer's has 2.")
        return nn.Conv2d(*args, **kwargs)


def build_unet(
    unet_config: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> UNetModel:
    """Builds a trainable UNet from nothing.

    The last layer of each residual branch and of the UNet starts at zero, so that the fresh model
    is the identity in depth and predicts zero. Other layers start as `torch.nn` starts them.

    Args:
        unet_config: arguments of ComfyUI's `UNetModel`.
        dtype: type of the weights.
        device: where to build it.

    Source: latent diffusion (arXiv 2112.10752), its `zero_module`.
    """
    unet = UNetModel(**unet_config, dtype=dtype, device=device, operations=TorchLayers)
    last_layers = [unet.out[-1]]
    last_layers += [m.out_layers[-1] for m in unet.modules() if isinstance(m, ResBlock)]
    last_layers += [m.proj_out for m in unet.modules() if isinstance(m, SpatialTransformer)]
    for layer in last_layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return unet
