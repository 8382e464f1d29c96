"""Autoencoders with controllable feature wrapping (CFW), as ComfyUI's VAE."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import Tensor, nn

from ...errors import PFStorerError
from ...restorers.stablesr.fusion import FusionBlock, FusionSizes, fusion_sizes
from ...weights.checks import check_numbers, check_shapes
from ...weights.reading import read_weights

_FUSION_KEY = re.compile(r"decoder\.fusion_layer_(\d+)\.")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def load_cfw(path: str | os.PathLike[str]) -> FusionVAE:
    """Loads an autoencoder whose decoder can look at the LQ image.

    Args:
        path: StableSR's CFW checkpoint, or a safetensors file of the same tensors.

    Raises:
        PFStorerError: a file that is missing, damaged, of another kind, or asks for code.
    """
    path = Path(path)
    content, _ = read_weights(path)
    nested = content.get("state_dict")
    entries = nested if isinstance(nested, Mapping) else content
    # Checkpoints also hold the losses of their training. Copies need the file no more.
    weights = {
        key: value.clone()
        for key, value in entries.items()
        if str(key).startswith(_PARTS) and isinstance(value, Tensor)
    }
    check_numbers(f"'{path.name}'", weights)
    vae = FusionVAE(weights, path.name)
    vae.patcher.cached_patcher_init = (_reload_patcher, (path,))
    return vae


class FusionVAE(comfy.sd.VAE):
    """ComfyUI's VAE around an autoencoder of Stable Diffusion's kind with fusion blocks.

    `encode` and `decode` are those of the autoencoder without fusion.

    Args:
        weights: tensors by their names in StableSR's CFW checkpoint.
        name: name of the file, for errors.
        device: where the VAE runs; None lets ComfyUI choose.
        dtype: type of the weights; None lets ComfyUI choose.

    Raises:
        PFStorerError: no fusion blocks, or tensors that do not make up such an autoencoder.

    Source: StableSR (arXiv 2305.07015), controllable feature wrapping.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        name: str,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        base = {key: value for key, value in weights.items() if not _FUSION_KEY.match(key)}
        fusion = {key: value for key, value in weights.items() if _FUSION_KEY.match(key)}
        params, sizes = _check_layout(base, fusion, name)
        super().__init__(sd=base, device=device, config={"params": params}, dtype=dtype)
        levels = len(params["ddconfig"]["ch_mult"])
        self.downscale_ratio = self.upscale_ratio = 2 ** (levels - 1)
        self.latent_channels = params["embed_dim"]
        self.fusion_channels = {level: size.in_channels for level, size in sizes.items()}
        # As parts of the autoencoder the blocks are moved and measured with it.
        model = self.first_stage_model
        _add_fusion(model, sizes, dtype=self.vae_dtype)
        stored = {key: value.to(self.vae_dtype) for key, value in fusion.items()}
        model.load_state_dict(stored, strict=False, assign=self.patcher.is_dynamic())
        model.eval().requires_grad_(False)
        mm.archive_model_dtypes(model)
        self.size = mm.module_size(model)

    @torch.no_grad()
    def decode_with(self, samples: Tensor, lq_image: Tensor, weight: float) -> Tensor:
        """Decodes latents with the help of the LQ image's features.

        As many items at once as fit into the free memory; running out of it is left to the
        caller, who can decode smaller pieces.

        Args:
            samples: (B, C, h, w), as `decode` takes them.
            lq_image: (B, H, W, 3) in [0, 1], of the output's size.
            weight: fusion weight w in [0, 1]: 0 is the plain decoder bit for bit, 1 follows the
                LQ image most.

        Returns:
            (B, H, W, 3) in [0, 1], where ComfyUI keeps images.

        Raises:
            PFStorerError: a weight outside of [0, 1], or shapes that do not fit.
        """
        self._check_inputs(samples, lq_image, weight)
        estimate = self.memory_used_decode_with if weight else self.memory_used_decode
        memory = estimate(samples.shape, self.vae_dtype)
        mm.load_models_gpu(
            [self.patcher], memory_required=memory, force_full_load=self.disable_offload
        )
        at_once = max(1, int(self.patcher.get_free_memory(self.device) / memory))
        place = {"device": self.device, "dtype": self.vae_dtype}
        target = {"device": self.output_device, "dtype": self.vae_output_dtype()}
        decoded = []
        # Older versions know no other GPU than the current one.
        context = getattr(mm, "cuda_device_context", lambda _: contextlib.nullcontext())
        with context(self.device):
            pairs = zip(samples.split(at_once), lq_image.split(at_once), strict=True)
            for latents, images in pairs:
                latents = latents.to(**place)
                if weight:
                    pixels = self.process_input(images.movedim(-1, 1)).to(**place)  # (b, 3, H, W)
                    out = self._decode_fused(latents, self._encoder_features(pixels), weight)
                else:
                    out = self.first_stage_model.decode(latents)  # (b, 3, H, W)
                decoded.append(self.process_output(out.to(**target, copy=True)))
        return torch.cat(decoded).movedim(1, -1)

    def memory_used_decode_with(self, shape: Sequence[int], dtype: torch.dtype) -> float:
        """Estimates the bytes that `decode_with` takes for one item, as ComfyUI's estimates do.

        Args:
            shape: (B, C, h, w) of the samples; the batch size does not count.
            dtype: type of the VAE.
        """
        height, width = (side * self.upscale_ratio for side in shape[2:])
        encode = self.memory_used_encode((1, 3, height, width), dtype)
        decode = self.memory_used_decode(shape, dtype)
        kept = sum(c * height * width / 4**level for level, c in self.fusion_channels.items())
        return max(encode, decode) + kept * mm.dtype_size(dtype)

    def _check_inputs(self, samples: Tensor, lq_image: Tensor, weight: float) -> None:
        if not 0 <= weight <= 1:
            raise PFStorerError(
                f"The fidelity weight is {weight}; give a number from 0 (plain decoder) to 1."
            )
        if samples.ndim != 4 or samples.shape[1] != self.latent_channels or 0 in samples.shape:
            raise PFStorerError(
                f"The latent has the shape {tuple(samples.shape)}, but the CFW decoder takes "
                f"(batch, {self.latent_channels}, height, width); use latents of the Stable "
                "Diffusion that it was made for."
            )
        batch, _, height, width = samples.shape
        expected = (batch, height * self.upscale_ratio, width * self.upscale_ratio, 3)
        if lq_image.shape != expected:
            raise PFStorerError(
                f"The LQ image has the shape {tuple(lq_image.shape)}, but with this latent the CFW "
                f"decoder needs {expected} (batch, height, width, channels); scale it to the "
                "output's size and leave out alpha."
            )

    def _encoder_features(self, pixels: Tensor) -> dict[int, Tensor]:
        """Returns what enters the downsampling of each fused level, for (B, 3, H, W) in [-1, 1]."""
        features: dict[int, Tensor] = {}
        encoder = self.first_stage_model.encoder

        def keep(level: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            features[level] = inputs[0]  # (B, C, H / 2**level, W / 2**level)

        levels = self.fusion_channels
        with _forward_pre_hooks({encoder.down[k].downsample: partial(keep, k) for k in levels}):
            encoder(pixels)
        return features

    def _decode_fused(self, latents: Tensor, features: dict[int, Tensor], weight: float) -> Tensor:
        """Returns (B, 3, H, W) in [-1, 1], fusing what enters the upsampling of each level."""
        decoder = self.first_stage_model.decoder

        def fuse(level: int, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            block = decoder.get_submodule(_block_name(level))
            return (block(features.pop(level), inputs[0], weight), *inputs[1:])

        levels = self.fusion_channels
        with _forward_pre_hooks({decoder.up[k].upsample: partial(fuse, k) for k in levels}):
            return self.first_stage_model.decode(latents)


@contextlib.contextmanager
def _forward_pre_hooks(hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _block_name(level: int) -> str:
    return f"fusion_layer_{level}"


def _add_fusion(model: AutoencoderKL, sizes: Mapping[int, FusionSizes], **place: Any) -> None:
    for level, size in sizes.items():
        block = FusionBlock(*size, **place, operations=comfy.ops.disable_weight_init)
        model.decoder.add_module(_block_name(level), block)


def _check_layout(
    base: Mapping[str, Tensor], fusion: Mapping[str, Tensor], name: str
) -> tuple[dict[str, Any], dict[int, FusionSizes]]:
    """Returns the arguments of `AutoencoderKL`, and of `FusionBlock` by level."""
    if not {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= base.keys():
        raise PFStorerError(
            f"'{name}' is no autoencoder of Stable Diffusion's kind; choose a CFW checkpoint of "
            "StableSR."
        )
    if not fusion:
        raise PFStorerError(
            f"'{name}' is a plain VAE without fusion layers; load it with 'Load VAE', or choose a "
            "CFW checkpoint of StableSR."
        )
    try:
        params = _autoencoder_params(base)
        sizes = {level: fusion_sizes(weights) for level, weights in _by_level(fusion).items()}
        with torch.device("meta"):
            model = AutoencoderKL(**params)
            _add_fusion(model, sizes)
    except (KeyError, IndexError, ArithmeticError, ValueError, RuntimeError) as error:
        raise PFStorerError(
            f"'{name}' has tensors that make up no CFW autoencoder ({error}); get the file again."
        ) from error
    check_shapes(f"'{name}'", {**base, **fusion}, model.state_dict(), "CFW autoencoder")
    mult, width = params["ddconfig"]["ch_mult"], params["ddconfig"]["ch"]
    for level, size in sizes.items():
        # The finest level is not upsampled, the coarsest not downsampled.
        inner = 0 < level < len(mult) - 1
        if not inner or set(size[:2]) != {width * mult[level]}:
            raise PFStorerError(
                f"'{name}' has a fusion layer {level} that fits no level of its autoencoder; get "
                "the file again."
            )
    return params, sizes


def _autoencoder_params(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads from the shapes what ComfyUI assumes to be as in Stable Diffusion."""
    width, in_channels = weights["encoder.conv_in.weight"].shape[:2]
    z_channels = weights["decoder.conv_in.weight"].shape[1]
    levels = _indices(weights, r"encoder\.down\.(\d+)\.")
    widths = [weights[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in levels]
    return {
        "ddconfig": {
            "ch": width,
            "ch_mult": [level_width // width for level_width in widths],
            "num_res_blocks": len(_indices(weights, r"encoder\.down\.0\.block\.(\d+)\.")),
            "z_channels": z_channels,
            "double_z": weights["encoder.conv_out.weight"].shape[0] == 2 * z_channels,
            "in_channels": in_channels,
            "out_ch": weights["decoder.conv_out.weight"].shape[0],
            "attn_resolutions": [],
            "resolution": 256,  # only compared with the empty list above
            "dropout": 0.0,
        },
        "embed_dim": weights["post_quant_conv.weight"].shape[1],
    }


def _indices(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    return sorted({int(found[1]) for key in weights if (found := re.match(pattern, key))})


def _by_level(fusion: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    levels: dict[int, dict[str, Tensor]] = {}
    for key, value in fusion.items():
        found = _FUSION_KEY.match(key)
        if found:
            levels.setdefault(int(found[1]), {})[key[found.end() :]] = value
    return levels


def _reload_patcher(path: Path, disable_dynamic: bool = False) -> Any:
    # ComfyUI calls this for a second copy, for example on another device.
    patcher = load_cfw(path).patcher
    if not disable_dynamic:
        return patcher
    return comfy.model_patcher.ModelPatcher(
        patcher.model, load_device=patcher.load_device, offload_device=patcher.offload_device
    )
