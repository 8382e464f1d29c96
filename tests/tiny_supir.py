"""Core SUPIR on Stable Diffusion XL, at a tenth of the width and depth, of random weights."""

from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.supported_models_base import ClipTarget
from tiny_models import randomise
from torch import Tensor, nn

from pfstorer_core.host.load.fixed_prompt import FixedPrompt, FixedPromptTokenizer

modules = pytest.importorskip("comfy.ldm.supir.supir_modules", reason="no SUPIR in ComfyUI")

WIDTH = 64  # of the text features
POOLED = 32  # of the pooled text
SIZES = 6 * 256  # of what Stable Diffusion XL makes of the picture's size
CHANNELS = 32
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": CHANNELS,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "num_head_channels": 32,
    "num_heads": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
    "context_dim": WIDTH,
    "num_classes": "sequential",
    "adm_in_channels": POOLED + SIZES,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "legacy": False,
}
VAE = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 4, "in_channels": 3}
VAE |= {"out_ch": 3, "attn_resolutions": [], "resolution": 64, "double_z": True}


class TinySUPIR(modules.SUPIR):  # type: ignore[name-defined,misc]
    """SUPIR's own parts in its own order; it has its sizes written in."""

    def __init__(self, device: Any = None, dtype: Any = None, operations: Any = None) -> None:
        nn.Module.__init__(self)
        place = {"dtype": dtype, "device": device, "operations": operations}
        self.control_model = modules.GLVControl(
            model_channels=CHANNELS,
            num_head_channels=32,
            transformer_depth=(1, 1, 1),
            context_dim=WIDTH,
            adm_in_channels=POOLED + SIZES,
            **place,
        )
        one, two, four = CHANNELS, 2 * CHANNELS, 4 * CHANNELS
        given, joined = [one] * 4 + [two] * 3 + [four] * 3, [one] * 2 + [two] * 3 + [four] * 4 + [0]
        self.project_modules = nn.ModuleList(
            modules.ZeroSFT(c, c, concat_channels=extra, **place)
            for c, extra in zip(given, joined, strict=True)
        )
        for i in (6, 3):
            self.project_modules.insert(i, modules.ZeroCrossAttn(given[i], joined[i], **place))


class PooledPrompt(FixedPrompt):
    """A text encoder of one prompt, with a pooled output."""

    def encode_token_weights(self, tokens: Any) -> tuple[Tensor, Tensor]:
        prompt, _ = super().encode_token_weights(tokens)
        return prompt, prompt[:, 0, :POOLED]


def random_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Returns weights of a module's shapes, under which features keep their size."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in module.state_dict().items():
        scale = 0.7 / value[0].numel() ** 0.5 if value.ndim > 1 else 0.1
        norm = 1.0 if value.ndim == 1 and key.endswith("weight") else 0.0
        state[key] = torch.randn(value.shape, generator=generator) * scale + norm
    return state


def sdxl(seed: int = 0) -> tuple[Any, Any, Any]:
    """Returns MODEL, CLIP and VAE of ComfyUI's own classes."""
    config = comfy.supported_models.SDXL(dict(UNET))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    model.diffusion_model.load_state_dict(random_weights(model.diffusion_model, seed))
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=mm.get_torch_device(), offload_device=torch.device("cpu")
    )
    target = ClipTarget(FixedPromptTokenizer, PooledPrompt)
    target.params = {"shape": (3, WIDTH)}
    prompt = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed + 1))
    clip = comfy.sd.CLIP(
        target,
        parameters=prompt.numel(),
        state_dict=[{"prompt": prompt}],
        model_options={"dtype": torch.float32},
        disable_dynamic=True,
    )
    settings = {"ddconfig": VAE, "embed_dim": 4}
    weights = random_weights(AutoencoderKL(**settings), seed + 2)
    vae = comfy.sd.VAE(sd=weights, config={"params": settings}, dtype=torch.float32)
    return patcher, clip, vae


def model_patch(seed: int = 3, denoise_encoder: bool = True) -> Any:
    """Returns a MODEL_PATCH as `ModelPatchLoader` does."""
    network = TinySUPIR(dtype=torch.float32, operations=comfy.ops.manual_cast)
    network.load_state_dict(random_weights(network, seed))
    randomise(network, seed)
    if denoise_encoder:
        autoencoder = AutoencoderKL(ddconfig=VAE, embed_dim=4)
        network.denoise_encoder_sd = random_weights(autoencoder.encoder, seed + 9)
    return comfy.model_patcher.CoreModelPatcher(
        network, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )


def with_supir(
    model: Any, vae: Any, image: Tensor, patch: Any | None = None, restore_cfg: float = 0.0
) -> Any:
    """Returns the MODEL that core's 'Apply SUPIR Patch' gives."""
    from comfy_extras.nodes_model_patch import SUPIRApply

    return SUPIRApply.execute(
        model=model,
        model_patch=patch or model_patch(),
        vae=vae,
        image=image,
        strength_start=1.0,
        strength_end=1.0,
        restore_cfg=restore_cfg,
        restore_cfg_s_tmin=0.05,
    ).args[0]
