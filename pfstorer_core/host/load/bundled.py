"""Small diffusion models that restorer files bring along, as ComfyUI's MODEL, CLIP and VAE."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import torch
from comfy.latent_formats import LatentFormat
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel, ModelType, model_sampling
from comfy.supported_models_base import BASE, ClipTarget
from torch import Tensor, nn

from ...errors import PFStorerError
from ...restorers import files as restorer_files
from ...restorers.autoencoder import AutoencoderConfig, PatchAutoencoder
from ...restorers.base import BaseRestorer
from ...restorers.checkpoints import AUTOENCODER_PREFIX, PROMPT_KEY, UNET_PREFIX
from ...weights.checks import check_shapes, part_of
from .fixed_prompt import FixedPrompt, FixedPromptTokenizer
from .unet import TorchLayers

_LARGEST = 2**16  # of all numbers in a description, which may come from anywhere
_MOST_TIMESTEPS = 10_000
_LAYERS_HELD = 16  # layers of an autoencoder whose values are in memory at once, at most


def load_bundled(restorer_path: str | os.PathLike[str]) -> tuple[Any, Any, Any]:
    """Loads the diffusion model, prompt and autoencoder that a restorer file brings along.

    Args:
        restorer_path: a bundled restorer.

    Returns:
        (MODEL, CLIP, VAE); the MODEL is the plain diffusion model, without its restorer.

    Raises:
        PFStorerError: the file brings no model along, or one that is not complete.
    """
    path = Path(restorer_path)
    return from_restorer(restorer_files.load(path), path)


def from_restorer(
    restorer: BaseRestorer, path: Path, disable_dynamic: bool = False
) -> tuple[Any, Any, Any]:
    """Does what `load_bundled` does, with a restorer that was read from `path` already."""
    bundled, state = restorer.info.bundled, restorer.bundled_state
    if bundled is None or state is None:
        raise PFStorerError(
            f"Restorer '{path.name}' brings no diffusion model along; "
            "choose the Stable Diffusion checkpoint that it was trained on."
        )
    try:
        _check_description(bundled, state)
        config = BundledConfig(bundled, restorer.info.prediction_type)
        if not model_sampling(config, config.model_type({})).sigmas.isfinite().all():
            raise ValueError("a noise schedule that is not finite")
    # A description can be wrong in any way; the host answers each with an error of its own.
    except Exception as error:
        raise PFStorerError(
            f"Restorer '{path.name}' describes its bundled model wrongly ({error!r}); "
            "get the file again."
        ) from error
    model = _build_model(part_of(state, UNET_PREFIX), config, path, disable_dynamic)
    vae = BundledVAE(part_of(state, AUTOENCODER_PREFIX), bundled, path)
    clip = _build_clip(state, path)
    model.cached_patcher_init = (_reload_model, (path,))
    clip.patcher.cached_patcher_init = (_reload_clip, (path,))
    vae.patcher.cached_patcher_init = (_reload_vae, (path,))
    return model, clip, vae


class BundledLatent(LatentFormat):
    """Latents of a bundled autoencoder.

    Args:
        latent: the entry "latent" of the file's metadata.
    """

    def __init__(self, latent: dict[str, Any]) -> None:
        self.scale_factor = latent["scale_factor"]
        self.latent_channels = latent["channels"]
        self.spacial_downscale_ratio = latent["downscale"]
        self.latent_rgb_factors = latent["rgb_factors"]
        self.latent_rgb_factors_bias = latent["rgb_bias"]


class BundledConfig(BASE):
    """ComfyUI's description of a bundled diffusion model.

    Args:
        bundled: the entry "bundled" of the file's metadata.
        prediction_type: "epsilon" or "v_prediction".
    """

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (the host reads it from the class)
    # A small model in half precision saves nothing and loses some of what it was trained to.
    supported_inference_dtypes = [torch.float32]  # noqa: RUF012
    # About 14 KiB per latent pixel were measured; the host asks for 54 on a CPU, 14 on a GPU.
    memory_usage_factor = 0.35

    def __init__(self, bundled: dict[str, Any], prediction_type: str | None) -> None:
        unet = dict(bundled["unet"])
        if isinstance(unet["num_res_blocks"], int):  # the host's LoRA code wants one per level
            unet["num_res_blocks"] = [unet["num_res_blocks"]] * len(unet["channel_mult"])
        super().__init__(unet)
        self.latent_format = BundledLatent(bundled["latent"])
        self.sampling_settings = dict(bundled["schedule"])
        self.prediction_type = prediction_type

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> ModelType:
        """Returns what the UNet predicts."""
        v_prediction = self.prediction_type == "v_prediction"
        return ModelType.V_PREDICTION if v_prediction else ModelType.EPS

    def inpaint_model(self) -> bool:
        """Returns False: the latents of other autoencoders than SD's may have more channels."""
        return False


class BundledVAE(comfy.sd.VAE):
    """ComfyUI's VAE around a bundled `PatchAutoencoder`, in float32.

    Args:
        state_dict: the autoencoder's weights.
        bundled: the entry "bundled" of the file's metadata.
        path: the restorer file, for errors.
    """

    def __init__(self, state_dict: dict[str, Tensor], bundled: dict[str, Any], path: Path) -> None:
        # The host detects no patch autoencoder, so it sets itself up around the smallest one that
        # it knows, which is then replaced.
        layers = {"ch": 32, "ch_mult": [1], "num_res_blocks": 1, "z_channels": 4, "out_ch": 3}
        layers |= {"in_channels": 3, "attn_resolutions": [], "resolution": 32, "double_z": True}
        small = {"ddconfig": layers, "embed_dim": 4}
        super().__init__(
            sd=AutoencoderKL(**small).state_dict(), config={"params": small}, dtype=torch.float32
        )
        latent, config = bundled["latent"], AutoencoderConfig(**bundled["autoencoder"])
        # The host's estimate is for Stable Diffusion's autoencoder.
        values = _LAYERS_HELD * max(config.encoder_width, config.decoder_width)
        refinement = 4 * config.refine_width * config.patch**2
        self.memory_used_decode = lambda shape, dtype: (
            4 * (values + refinement) * shape[-2] * shape[-1]
        )
        self.memory_used_encode = lambda shape, dtype: (
            4 * values * shape[-2] * shape[-1] / latent["downscale"] ** 2
        )
        self.downscale_ratio = self.upscale_ratio = latent["downscale"]
        self.latent_channels = latent["channels"]
        self.disable_offload = True
        self.first_stage_model = PatchAutoencoder(config)
        self.first_stage_model.eval().requires_grad_(False)
        _load_weights(self.first_stage_model, state_dict, AUTOENCODER_PREFIX, path)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=mm.vae_offload_device()
        )
        self.size = mm.module_size(self.first_stage_model)


def _check_description(bundled: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuses a description that does not fit the weights, before any memory is taken for it.

    Raises:
        Exception: of any kind, with a text that says what is wrong.
    """
    unet, latent, schedule = bundled["unet"], bundled["latent"], bundled["schedule"]
    autoencoder = AutoencoderConfig(**bundled["autoencoder"])
    if not all(math.isfinite(x) and abs(x) <= _LARGEST for x in _numbers_in(bundled)):
        raise ValueError("a number that no model has")
    layers = [autoencoder.encoder_depth, autoencoder.decoder_depth]
    for name in ("num_res_blocks", *(key for key in unet if key.startswith("transformer_depth"))):
        levels = unet[name] if isinstance(unet[name], list) else [unet[name]]
        layers += [count for count in levels if count is not None]
    if sum(layers) * len(unet["channel_mult"]) > len(state):
        raise ValueError("more layers than there are weights")
    width = state[PROMPT_KEY].shape[-1]
    for found, expected in (
        (latent["channels"], autoencoder.latent_channels),
        (latent["downscale"], autoencoder.patch),
        (unet["in_channels"], autoencoder.latent_channels),
        (unet["out_channels"], autoencoder.latent_channels),
        (unet["context_dim"], width),
    ):
        if type(found) is not int or found != expected:
            raise ValueError(f"{found} where {expected} is needed")
    colours = torch.tensor([*latent["rgb_factors"], latent["rgb_bias"]])
    if colours.shape != (latent["channels"] + 1, 3):
        raise ValueError("colours of another number of channels")
    if not latent["scale_factor"] > 0 or not 1 <= schedule["timesteps"] <= _MOST_TIMESTEPS:
        raise ValueError("a latent's scale or a number of timesteps that no model has")
    if unet["image_size"] < 1:
        raise ValueError("an image size below 1")
    modules = {
        UNET_PREFIX: UNetModel(
            **unet, dtype=torch.float32, device=torch.device("meta"), operations=TorchLayers
        ),
        AUTOENCODER_PREFIX: PatchAutoencoder(autoencoder, device="meta"),
    }
    for prefix, module in modules.items():
        shapes = {prefix + key: value.shape for key, value in module.state_dict().items()}
        for key, shape in shapes.items():
            if key in state and state[key].shape != shape:
                raise ValueError(f"{key} is {tuple(state[key].shape)} instead of {tuple(shape)}")


def _numbers_in(value: Any) -> Iterator[int | float]:
    """Yields all numbers of a description."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _numbers_in(inner)
    elif isinstance(value, (int, float)):
        yield value


def _build_model(
    state_dict: dict[str, Tensor], config: BundledConfig, path: Path, disable_dynamic: bool
) -> Any:
    load_device = mm.get_torch_device()
    parameters = sum(tensor.numel() for tensor in state_dict.values())
    dtypes = config.supported_inference_dtypes
    dtype = mm.unet_dtype(model_params=parameters, supported_dtypes=dtypes)
    config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, load_device, dtypes))
    offload_device = mm.unet_offload_device()
    model: BaseModel = config.get_model(state_dict, device=offload_device)
    plain, core = comfy.model_patcher.ModelPatcher, comfy.model_patcher.CoreModelPatcher
    patcher_class = plain if disable_dynamic else core
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    weights = {key: value.to(dtype) for key, value in state_dict.items()}
    _load_weights(model.diffusion_model, weights, UNET_PREFIX, path, patcher.is_dynamic())
    return patcher


def _build_clip(state_dict: dict[str, Tensor], path: Path) -> Any:
    prompt = state_dict.get(PROMPT_KEY)
    if prompt is None or prompt.ndim != 2:
        raise PFStorerError(
            f"Restorer '{path.name}' lacks its prompt ({PROMPT_KEY}, tokens x width); "
            "get the file again."
        )
    target = ClipTarget(FixedPromptTokenizer, FixedPrompt)
    target.params = {"shape": tuple(prompt.shape)}
    return comfy.sd.CLIP(
        target,
        parameters=prompt.numel(),
        state_dict=[{"prompt": prompt}],
        model_options={"dtype": torch.float32},
        disable_dynamic=True,  # a bare parameter, which the host's weight streaming does not see
    )


def _load_weights(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    path: Path,
    assign: bool = False,
) -> None:
    given, expected = (
        {prefix + key: value for key, value in x.items()} for x in (state_dict, module.state_dict())
    )
    check_shapes(f"Restorer '{path.name}'", given, expected, "bundled model")
    module.load_state_dict(state_dict, assign=assign)


# The host calls these to get a second copy of a model, for training or for another device.


def _reload_model(path: Path, disable_dynamic: bool = False) -> Any:
    return from_restorer(restorer_files.load(path), path, disable_dynamic)[0]


def _reload_clip(path: Path, disable_dynamic: bool = False) -> Any:
    return from_restorer(restorer_files.load(path), path, disable_dynamic)[1].patcher


def _reload_vae(path: Path, disable_dynamic: bool = False) -> Any:
    return from_restorer(restorer_files.load(path), path, disable_dynamic)[2].patcher
