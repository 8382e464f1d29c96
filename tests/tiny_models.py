"""Small diffusion models with restorers for tests in ComfyUI, of golden or random weights."""

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from golden_weights import Goldens, fill
from torch import Tensor, nn

from pfstorer_core.host.base import base_of
from pfstorer_core.host.load.unet import build_unet
from pfstorer_core.host.sites import find_identity_sites, find_sft_sites
from pfstorer_core.identities.adapter import AdapterInfo, IdentityAdapter
from pfstorer_core.identities.config import PersonalizationConfig
from pfstorer_core.restorers import files as restorer_files
from pfstorer_core.restorers.autoencoder import AutoencoderConfig, PatchAutoencoder
from pfstorer_core.restorers.base import BaseRestorer
from pfstorer_core.restorers.stablesr.encoder import EncoderConfig

UNET_PREFIX = "model.diffusion_model."
SCHEDULE = {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.012}
# 4 latent channels of 4 x 4 pixels, two levels: a step takes 20 ms.
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": [0, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1],
    "context_dim": 32,
    "legacy": False,
}
ENCODER = EncoderConfig(4, 32, 32, 1, (2,), (1, 1), 4)
AUTOENCODER = AutoencoderConfig(4, 4, 32, 1, 32, 1)
LATENT = {
    "channels": 4,
    "downscale": 4,
    "scale_factor": 0.5,
    "rgb_factors": [[0.3, 0.2, 0.1], [0.1, 0.3, 0.2], [-0.2, 0.1, 0.1], [0.1, 0.1, -0.3]],
    "rgb_bias": [0.0, 0.1, -0.1],
}
TOKENS = 3


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Gives every parameter that starts at zero values, so that each layer counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter[0].numel() ** 0.5)


def random_restorer(
    unet: Any, encoder: EncoderConfig = ENCODER, prediction_type: str = "v_prediction"
) -> BaseRestorer:
    """Returns a restorer of random weights that fits a UNet."""
    channels = {site: found[0] for site, found in find_sft_sites(unet).items()}
    torch.manual_seed(1)
    restorer = BaseRestorer.initialise(
        channels, encoder, hidden=32, name="tiny", prediction_type=prediction_type
    )
    randomise(restorer)
    return restorer


def tiny_unet(**changes: Any) -> Any:
    """Returns a fresh UNet of the tiny model, with changes of its settings."""
    return build_unet({**UNET, **changes})


def write_bundled(path: Path, prediction_type: str = "v_prediction") -> Path:
    """Writes a bundled restorer of random weights, in the layout of the mini restorer."""
    torch.manual_seed(0)
    unet = build_unet(copy.deepcopy(UNET))
    randomise(unet)
    restorer_files.save(
        bundled_of(random_restorer(unet, prediction_type=prediction_type), unet), path
    )
    return path


def bundled_of(restorer: BaseRestorer, unet: nn.Module) -> BaseRestorer:
    """Returns a restorer that brings a UNet along, and an autoencoder and a prompt."""
    autoencoder = PatchAutoencoder(AUTOENCODER)
    state = {UNET_PREFIX + key: value for key, value in unet.state_dict().items()}
    state |= {"first_stage_model." + k: v for k, v in autoencoder.state_dict().items()}
    state["cond_stage_model.prompt"] = torch.randn(TOKENS, UNET["context_dim"])
    restorer.bundled_state = state
    description = {
        "unet": UNET,
        "autoencoder": asdict(AUTOENCODER),
        "latent": LATENT,
        "schedule": {**SCHEDULE, "timesteps": 1000},
    }
    restorer.info = replace(restorer.info, bundled=description)
    return restorer


def comfy_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what ComfyUI's `UNetModel` takes for a UNet of the manifest."""
    config = copy.deepcopy(config)
    del config["semb_channels"]
    resolutions = config.pop("attention_resolutions")
    depth = config.pop("transformer_depth")
    blocks = config["num_res_blocks"]
    levels = [depth if 2**k in resolutions else 0 for k in range(len(config["channel_mult"]))]
    config["transformer_depth"] = [d for d in levels for _ in range(blocks)]
    config["transformer_depth_output"] = [d for d in levels for _ in range(blocks + 1)]
    config["transformer_depth_middle"] = depth
    return config


def golden_model(goldens: Goldens, name: str) -> tuple[Any, BaseRestorer]:
    """Returns ComfyUI's UNet and the restorer with the weights that the vectors of `name` had.

    Args:
        name: "dual_unet_tiny2", "dual_unet_tiny4" or "dual_unet_full".
    """
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    item = goldens.items[name]
    unet = UNetModel(
        **comfy_config(item["config"]),
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    ).eval()
    shapes = {UNET_PREFIX + key: value.shape for key, value in unet.state_dict().items()}
    weights = {key.removeprefix(UNET_PREFIX): value for key, value in fill(shapes).items()}
    unet.load_state_dict(weights, assign=True)
    settings = item["encoder_config"]
    names = EncoderConfig.__dataclass_fields__
    encoder = EncoderConfig(**{key: settings[key] for key in names})
    sites = find_sft_sites(unet)
    channels = {site: sites[site][0] for site in item["spade_blocks"]}
    blank = BaseRestorer.initialise(channels, encoder, hidden=128)
    restorer = BaseRestorer.from_state_dict(
        fill({key: value.shape for key, value in blank.weights().items()})
    )
    return unet.requires_grad_(False), restorer.eval().requires_grad_(False)


def image(size: tuple[int, int] = (64, 64), batch: int = 1, seed: int = 0) -> Tensor:
    """Returns a smooth random IMAGE (B, H, W, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return fine.clamp(0, 1).movedim(1, -1)


def latents(batch: int = 1, size: tuple[int, int] = (16, 16), seed: int = 0) -> Tensor:
    """Returns random latents of the tiny autoencoder, (B, 4, *size)."""
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, **options: Any) -> list[Any]:
    """Returns a random CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 3, UNET["context_dim"], generator=generator), options]]


def random_adapter(
    model: Any, seed: int = 0, name: str = "Ada", config: PersonalizationConfig | None = None
) -> IdentityAdapter:
    """Returns an adapter of random weights that changes what a restorer's MODEL gives."""
    adapter = untrained_adapter(model, name, config)
    generator = torch.Generator().manual_seed(seed)
    for site in adapter.sites:
        adapter.block(site).initialise(generator)
        randomise(adapter.block(site).out, seed)
        with torch.no_grad():
            adapter.block(site).gamma.weight.uniform_(0.5, 1.5, generator=generator)
    return adapter.requires_grad_(False)


def untrained_adapter(
    model: Any, name: str = "Ada", config: PersonalizationConfig | None = None
) -> IdentityAdapter:
    """Returns a fresh adapter for a restorer's MODEL."""
    base = base_of(model)
    info = AdapterInfo(
        name=name,
        base_name=base.info.name,
        base_fingerprint=base.info.fingerprint,
        context_dim=base.context_dim,
        site_channels=find_identity_sites(model.model.diffusion_model),
        config=config or PersonalizationConfig(),
    )
    return IdentityAdapter.initialise(info)
