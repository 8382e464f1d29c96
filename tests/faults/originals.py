"""Small whole files of each kind that the plugin reads, for faults to be made of."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfstorer_core.identities.adapter import AdapterInfo, IdentityAdapter
from pfstorer_core.identities.config import PersonalizationConfig
from pfstorer_core.measures.embedding import EmbeddingConfig, EmbeddingNetwork
from pfstorer_core.measures.similarity import NetworkEmbedding, load_embedding, save_embedding
from pfstorer_core.restorers import files as restorer_files
from pfstorer_core.restorers.autoencoder import AutoencoderConfig, PatchAutoencoder
from pfstorer_core.restorers.stablesr.encoder import EncoderConfig
from pfstorer_core.restorers.stablesr.fusion import FusionBlock

UNET: dict[str, Any] = {
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
AUTOENCODER = AutoencoderConfig(4, 4, 32, 1, 32, 1)
BUNDLED: dict[str, Any] = {
    "unet": UNET,
    "autoencoder": dataclasses.asdict(AUTOENCODER),
    "latent": {
        "channels": 4,
        "downscale": 4,
        "scale_factor": 0.5,
        "rgb_factors": [[0.3, 0.2, 0.1], [0.1, 0.3, 0.2], [-0.2, 0.1, 0.1], [0.1, 0.1, -0.3]],
        "rgb_bias": [0.0, 0.1, -0.1],
    },
    "schedule": {
        "beta_schedule": "linear",
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
    },
}
KL = {  # of the CFW file
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
SUFFIXES = {  # of the file of each kind
    "adapter": ".safetensors",
    "bundled restorer": ".safetensors",
    "restorer checkpoint": ".ckpt",
    "embedding": ".safetensors",
    "CFW decoder": ".safetensors",
}


def write_original(kind: str, path: Path) -> None:
    """Writes a whole file of a kind of SUFFIXES, of random weights."""
    torch.manual_seed(0)
    if kind == "adapter":
        _adapter().save(path)
    elif kind == "bundled restorer":
        restorer_files.save(_restorer(), path)
    elif kind == "restorer checkpoint":
        torch.save({"state_dict": _restorer().weights(), "epoch": 3}, path)
    elif kind == "embedding":
        save_embedding(EmbeddingNetwork(EmbeddingConfig(16, 8, (8,), 4, 8)).eval(), path)
    else:
        _write_cfw(path)


def load(kind: str, path: Path) -> dict[str, Tensor]:
    """Loads a file as the plugin's nodes do and returns the weights that it gave."""
    from pfstorer_core import host

    if kind == "adapter":
        return IdentityAdapter.load(path).state_dict()
    if kind == "bundled restorer":
        model, _, vae = host.load_base_restorer(path)
        (patcher,) = model.get_additional_models()
        parts: tuple[nn.Module, ...] = (model.model, vae.first_stage_model, patcher.model)
        return {f"{k}.{key}": x for k, p in enumerate(parts) for key, x in p.state_dict().items()}
    if kind == "restorer checkpoint":
        return restorer_files.load(path).weights()
    if kind == "embedding":
        embedding = load_embedding(path)
        if not isinstance(embedding, NetworkEmbedding):
            raise TypeError("no embedding of the plugin's own")
        return embedding.network.state_dict()
    return host.load_cfw(path).first_stage_model.state_dict()


def _adapter() -> IdentityAdapter:
    info = AdapterInfo(
        name="Ada",
        base_name="small",
        base_fingerprint="0" * 64,
        context_dim=32,
        site_channels={"input_blocks.1.0": 32, "output_blocks.3.1": 64},
        config=PersonalizationConfig(),
        photos=5,
        steps=400,
        training={"steps": 400, "optimizer": "muon"},
    )
    return _randomised(IdentityAdapter.initialise(info))


def _restorer() -> restorer_files.BaseRestorer:
    from pfstorer_core.host.load.unet import build_unet
    from pfstorer_core.host.sites import find_sft_sites

    unet = _randomised(build_unet(copy.deepcopy(UNET)))
    sites = {site: channels for site, (channels, _) in find_sft_sites(unet).items()}
    encoder = EncoderConfig(4, 32, 32, 1, (2,), (1, 1), 4)
    restorer = restorer_files.BaseRestorer.initialise(
        sites, encoder, hidden=32, name="small", prediction_type="v_prediction"
    )
    _randomised(restorer)
    state = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    autoencoder = PatchAutoencoder(AUTOENCODER)
    state |= {f"first_stage_model.{k}": v for k, v in autoencoder.state_dict().items()}
    state["cond_stage_model.prompt"] = torch.randn(3, UNET["context_dim"])
    restorer.bundled_state = state
    restorer.info = dataclasses.replace(restorer.info, bundled=BUNDLED)
    return restorer


def _write_cfw(path: Path) -> None:
    import safetensors.torch
    from comfy.ldm.models.autoencoder import AutoencoderKL

    model = AutoencoderKL(ddconfig=KL, embed_dim=4)
    model.decoder.add_module("fusion_layer_1", FusionBlock(32, 32, 1, 8))
    state = _randomised(model).state_dict()
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)


def _randomised(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.1)
    return module
