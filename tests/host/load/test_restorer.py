"""Restorers become ComfyUI's MODEL, CLIP and VAE: bundled ones, and those for Stable Diffusion."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.sample
import pytest
import safetensors.torch
import torch
from golden_weights import relative_l2
from plain_sampling import sample
from tiny_models import ENCODER, UNET, image, random_restorer, write_bundled

import nodes
from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import RESTORER_KEY, base_of
from pfstorer_core.host.load.unet import build_unet
from pfstorer_core.restorers import files as restorer_files

# What ComfyUI recognises a Stable Diffusion 1.5 and a 2.1 by, with less depth.
SD15 = {
    **UNET,
    "model_channels": 320,
    "channel_mult": [1, 1],
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 768,
}
SD21 = {
    **SD15,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundled(tmp_path_factory.mktemp("restorers") / "tiny.safetensors")


@pytest.fixture
def loaded(path: Path):
    return host.load_base_restorer(path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of ComfyUI's own UNet in half precision, without text encoder."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    for name, config in {"v1-5": SD15, "v2-1": SD21}.items():
        torch.manual_seed(2)
        unet = build_unet(copy.deepcopy(config))
        state = {f"model.diffusion_model.{k}": v.half() for k, v in unet.state_dict().items()}
        paths[name] = folder / f"{name}.safetensors"
        safetensors.torch.save_file(state, paths[name])
    return paths


def write_restorer(path: Path, config: dict[str, Any], prediction_type: str | None) -> Path:
    unet = build_unet(copy.deepcopy(config))
    restorer = random_restorer(unet, ENCODER, prediction_type or "epsilon")
    restorer.info = dataclasses.replace(restorer.info, prediction_type=prediction_type)
    restorer_files.save(restorer, path)
    return path


class TestStableDiffusion:
    @pytest.mark.parametrize("base", ["v1-5", "v2-1"])
    def test_a_restorer_runs_on_its_checkpoint(
        self, base: str, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        config = {"v1-5": SD15, "v2-1": SD21}[base]
        restorer = write_restorer(tmp_path / "r.safetensors", config, None)
        model, clip, _ = host.load_base_restorer(restorer, checkpoints[base])
        expected = {"v1-5": "SD15", "v2-1": "SD20"}[base]
        assert type(model.model.model_config).__name__ == expected
        assert isinstance(model.get_model_object("latent_format"), comfy.latent_formats.SD15)
        assert clip is None
        assert base_of(model).empty_prompt is None
        dtype = model.model.get_dtype_inference()
        (patcher,) = model.get_additional_models_with_key(RESTORER_KEY)
        assert {p.dtype for p in patcher.model.parameters()} == {dtype}
        prompt = [[torch.randn(1, 77, config["context_dim"]), {}]]
        out = sample(model, prompt, cfg=2.0)
        assert out.isfinite().all()

    @pytest.mark.parametrize(
        ("checkpoint", "prediction_type", "size"),
        [
            ("v1-5", None, 512),
            ("v1-5", "v_prediction", 512),
            ("v2-1", "epsilon", 512),
            ("v2-1", "v_prediction", 768),
        ],
    )
    def test_what_the_base_is_is_said_once(
        self,
        checkpoint: str,
        prediction_type: str | None,
        size: int,
        checkpoints: dict[str, Path],
        tmp_path: Path,
    ) -> None:
        config = {"v1-5": SD15, "v2-1": SD21}[checkpoint]
        restorer = write_restorer(tmp_path / "r.safetensors", config, prediction_type)
        base = base_of(host.load_base_restorer(restorer, checkpoints[checkpoint])[0])
        assert base.trained_size == size
        assert base.prediction_type == (prediction_type or "epsilon")
        assert base.sigmas.shape == (1000,) and bool((base.sigmas.diff() > 0).all())
        assert (base.cell, base.latent_channels, base.size_step) == (8, 4, 2)
        assert (base.context_dim, base.pooled_dim) == (config["context_dim"], None)
        assert not base.portraits_only and not base.checks_persons

    def test_the_size_that_a_restorer_states_is_its_own(
        self, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        path = write_restorer(tmp_path / "r.safetensors", SD15, None)
        restorer = restorer_files.load(path)
        restorer.info = dataclasses.replace(restorer.info, size=256)
        restorer_files.save(restorer, path)
        model, _, _ = host.load_base_restorer(path, checkpoints["v1-5"])
        assert base_of(model).trained_size == 256

    def test_without_text_encoder_the_prompts_must_be_given(
        self, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        restorer = write_restorer(tmp_path / "r.safetensors", SD15, None)
        model, _, vae = host.load_base_restorer(restorer, checkpoints["v1-5"])
        with pytest.raises(PFStorerError, match=r"no text encoder.* connect positive and neg"):
            host.restore(model, vae, image())

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", None])
    def test_what_the_restorer_says_it_predicts_overrules_the_checkpoint(
        self, prediction_type: str | None, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        restorer = write_restorer(tmp_path / "r.safetensors", SD15, prediction_type)
        model, _, _ = host.load_base_restorer(restorer, checkpoints["v1-5"])
        assert model.model.model_type == comfy.model_base.ModelType.EPS, "the shared model stays"
        v_prediction = comfy.model_base.comfy.model_sampling.V_PREDICTION
        sampling = model.get_model_object("model_sampling")
        assert isinstance(sampling, v_prediction) == (prediction_type == "v_prediction")

    def test_the_prediction_type_changes_the_result(
        self, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        prompt = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(0)), {}]]
        results = {}
        for name in ("epsilon", "v_prediction"):
            restorer = write_restorer(tmp_path / f"{name}.safetensors", SD15, name)
            model, _, _ = host.load_base_restorer(restorer, checkpoints["v1-5"])
            results[name] = sample(model, prompt)
        assert relative_l2(results["v_prediction"], results["epsilon"]) > 0.1

    def test_a_restorer_for_another_base_is_refused_naming_both(
        self, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        deeper = {**SD15, "channel_mult": [1, 2], "num_heads": 8}
        restorer = write_restorer(tmp_path / "deeper.safetensors", deeper, None)
        with pytest.raises(PFStorerError, match=r"Restorer 'tiny' has 640 .* 'v1-5.safetensors'"):
            host.load_base_restorer(restorer, checkpoints["v1-5"])

    def test_a_restorer_for_another_text_encoder_is_refused_naming_both(
        self, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        """Stable Diffusion 1.5 and 2.1 have residual blocks of the same shapes."""
        path = write_restorer(tmp_path / "r.safetensors", SD21, None)
        sft = restorer_files.load(path).weights()
        unet = safetensors.torch.load_file(checkpoints["v2-1"])
        torch.save({"state_dict": {**unet, **sft}}, tmp_path / "stablesr.ckpt")
        host.load_base_restorer(tmp_path / "stablesr.ckpt", checkpoints["v2-1"])
        with pytest.raises(PFStorerError, match=r"'stablesr' .* 1024 wide.* 'v1-5.+' are 768 wide"):
            host.load_base_restorer(tmp_path / "stablesr.ckpt", checkpoints["v1-5"])

    def test_without_a_checkpoint_it_is_asked_for(self, tmp_path: Path) -> None:
        restorer = write_restorer(tmp_path / "r.safetensors", UNET, None)
        with pytest.raises(PFStorerError, match=r"'r.safetensors' brings no diffusion model"):
            host.load_base_restorer(restorer)

    def test_a_missing_checkpoint_is_named(self, tmp_path: Path) -> None:
        restorer = write_restorer(tmp_path / "r.safetensors", UNET, None)
        with pytest.raises(PFStorerError, match=r"no checkpoint '.*gone.ckpt'"):
            host.load_base_restorer(restorer, tmp_path / "gone.ckpt")

    def test_the_models_lie_in_the_memory_manager(
        self, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        restorer = write_restorer(tmp_path / "r.safetensors", SD15, None)
        model, _, _ = host.load_base_restorer(restorer, checkpoints["v1-5"])
        mm.unload_all_models()
        sample(model, [[torch.randn(1, 77, 768), {}]])
        names = [type(loaded.real_model()).__name__ for loaded in mm.current_loaded_models]
        assert "StableSRRestorer" in names


@pytest.mark.slow
def test_a_whole_stable_diffusion_checkpoint_restores_without_text_nodes(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Text encoder and autoencoder of Stable Diffusion 1.5 at full size, of random weights."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.sd1_clip import SDClipModel

    layers = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4}
    layers |= {"in_channels": 3, "out_ch": 3, "attn_resolutions": [], "resolution": 256}
    parts = {
        "cond_stage_model.": SDClipModel(device="cpu", dtype=torch.float32),
        "first_stage_model.": AutoencoderKL(ddconfig={**layers, "double_z": True}, embed_dim=4),
    }
    state = safetensors.torch.load_file(checkpoints["v1-5"])
    generator = torch.Generator().manual_seed(3)
    for prefix, module in parts.items():
        for key, value in module.state_dict().items():
            norm = 1.0 if value.ndim == 1 and key.endswith("weight") else 0.0
            noise = torch.randn(value.shape, generator=generator) * 0.02
            state[prefix + key] = (noise + norm).half()
    safetensors.torch.save_file(state, tmp_path / "v1-5.safetensors")
    restorer = write_restorer(tmp_path / "r.safetensors", SD15, "epsilon")
    model, clip, vae = host.load_base_restorer(restorer, tmp_path / "v1-5.safetensors")

    ((cond, _),) = base_of(model).empty_prompt
    ((same, _),) = nodes.CLIPTextEncode().encode(clip, "")[0]
    assert cond.shape == (1, 77, 768)
    assert torch.equal(cond, same)
    out = host.restore(model, vae, image((70, 50)), scale=1.5, steps=2)
    assert out.shape == (1, 105, 75, 3)
    assert out.isfinite().all()
    tiles = host.restore(model, vae, image((140, 100)), steps=1, tile_size=128)
    assert tiles.shape == (1, 140, 100, 3)
    assert tiles.isfinite().all()
