"""Restorers that bring their diffusion model along."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.sample
import pytest
import safetensors.torch
import torch
from golden_weights import relative_l2
from plain_sampling import sample
from tiny_models import LATENT, TOKENS, UNET, image, write_bundled

import nodes
from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import base_of
from pfstorer_core.restorers import files as restorer_files


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundled(tmp_path_factory.mktemp("restorers") / "tiny.safetensors")


@pytest.fixture
def loaded(path: Path):
    return host.load_base_restorer(path)


class TestBundled:
    def test_the_model_describes_itself(self, loaded) -> None:
        model, _, _ = loaded
        latent_format = model.get_model_object("latent_format")
        assert latent_format.latent_channels == LATENT["channels"]
        assert latent_format.latent_rgb_factors == LATENT["rgb_factors"]
        assert latent_format.process_in(torch.ones(1)).item() == LATENT["scale_factor"]
        sampling = model.get_model_object("model_sampling")
        assert isinstance(sampling, comfy.model_base.comfy.model_sampling.V_PREDICTION)
        assert sampling.sigma_max.item() == pytest.approx(14.6146, abs=1e-3)
        assert base_of(model).info.name == "tiny"

    def test_an_epsilon_model_predicts_noise(self, tmp_path: Path) -> None:
        model, _, _ = host.load_base_restorer(write_bundled(tmp_path / "e.safetensors", "epsilon"))
        sampling = model.get_model_object("model_sampling")
        assert not isinstance(sampling, comfy.model_base.comfy.model_sampling.V_PREDICTION)
        assert sample(model, base_of(model).empty_prompt).isfinite().all()

    def test_any_text_is_encoded_as_the_learned_prompt(self, loaded, path: Path) -> None:
        _, clip, _ = loaded
        stored = safetensors.torch.load_file(path)["cond_stage_model.prompt"]
        for text in ("", "a (sharp:1.4) photo, embedding:none", "x" * 2000):
            ((cond, pooled),) = nodes.CLIPTextEncode().encode(clip.clone(), text)[0]
            assert torch.equal(cond[0], stored)
            assert pooled["pooled_output"] is None
        assert cond.shape == (1, TOKENS, UNET["context_dim"])
        assert clip.tokenize("x", return_word_ids=True) == {"prompt": [[(0, 1.0, 0)]]}

    def test_the_vae_scales_crops_and_tiles(self, loaded) -> None:
        _, _, vae = loaded
        pixels = image((66, 129), 2)
        latent = vae.encode(pixels)
        assert latent.shape == (2, LATENT["channels"], 16, 32)
        decoded = vae.decode(latent)
        assert decoded.shape == (2, 64, 128, 3)
        assert 0 <= decoded.min() and decoded.max() <= 1
        (whole,), (tiled,) = (
            nodes.VAEDecode().decode(vae, {"samples": latent}),
            nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, 64, 32),
        )
        assert relative_l2(tiled, whole) < 0.01

    def test_the_autoencoder_is_the_files(self, loaded, path: Path) -> None:
        _, _, vae = loaded
        weights = safetensors.torch.load_file(path)
        for key, value in vae.get_sd().items():
            assert torch.equal(value, weights[f"first_stage_model.{key}"])

    def test_what_the_base_is_is_said_once(self, loaded) -> None:
        base = base_of(loaded[0])
        assert (base.trained_size, base.cell, base.latent_channels, base.size_step) == (
            128,
            4,
            4,
            2,
        )
        assert (base.context_dim, base.pooled_dim) == (32, None)
        assert base.portraits_only and base.checks_persons and base.empty_prompt is not None

    def test_a_second_copy_for_training_is_the_same_model(self, loaded) -> None:
        model, _, _ = loaded
        build, arguments = model.cached_patcher_init
        copy_of_model = build(*arguments, disable_dynamic=True)
        second = model.clone(model_override=copy_of_model.get_clone_model_override())
        assert second.model is not model.model
        prompt = base_of(model).empty_prompt
        assert torch.equal(sample(second, prompt), sample(model, prompt))
        weight = second.model.diffusion_model.out[2].weight
        assert not weight.is_inference()

    @pytest.mark.parametrize("key", ["model.diffusion_model.out.2.bias", "first_stage_model."])
    def test_missing_weights_are_named(self, tmp_path: Path, path: Path, key: str) -> None:
        tensors = safetensors.torch.load_file(path)
        gone = next(name for name in sorted(tensors) if name.startswith(key))
        del tensors[gone]
        broken = write_like(tmp_path / "broken.safetensors", path, tensors)
        with pytest.raises(PFStorerError, match=f"'broken.safetensors' lacks 1 of the .*{gone}"):
            host.load_base_restorer(broken)

    def test_a_description_that_builds_nothing_is_refused(self, tmp_path: Path, path: Path) -> None:
        restorer = restorer_files.load(path)
        description = copy.deepcopy(restorer.info.bundled)
        del description["latent"]["downscale"]
        restorer.info = dataclasses.replace(restorer.info, bundled=description)
        restorer_files.save(restorer, tmp_path / "broken.safetensors")
        with pytest.raises(PFStorerError, match=r"describes its bundled model wrongly.*downscale"):
            host.load_base_restorer(tmp_path / "broken.safetensors")

    @pytest.mark.parametrize(
        ("part", "key", "value"),
        [
            ("unet", "num_res_blocks", 10**9),
            ("unet", "channel_mult", [1] * 10**5),
            ("unet", "transformer_depth", [0, 10**9]),
            ("unet", "model_channels", 2**40),
            ("unet", "model_channels", 64),
            ("unet", "context_dim", 64),
            ("unet", "unknown", 1),
            ("autoencoder", "decoder_depth", 10**9),
            ("autoencoder", "encoder_width", 64),
            ("latent", "scale_factor", float("nan")),
            ("latent", "downscale", 8),
            ("latent", "rgb_factors", []),
            ("schedule", "beta_schedule", "none"),
            ("schedule", "timesteps", 10**12),
        ],
    )
    def test_an_odd_description_takes_no_memory(
        self, tmp_path: Path, path: Path, part: str, key: str, value: Any
    ) -> None:
        restorer = restorer_files.load(path)
        description = copy.deepcopy(restorer.info.bundled)
        description[part][key] = value
        restorer.info = dataclasses.replace(restorer.info, bundled=description)
        restorer_files.save(restorer, tmp_path / "odd.safetensors")
        with pytest.raises(PFStorerError, match=r"'odd.safetensors' describes its bundled .*wrong"):
            host.load_base_restorer(tmp_path / "odd.safetensors")

    def test_a_checkpoint_beside_a_bundled_restorer_is_refused(self, path: Path) -> None:
        with pytest.raises(PFStorerError, match=r"'v1-5.ckpt' was chosen; choose 'bundled in"):
            host.load_base_restorer(path, "v1-5.ckpt")


def write_like(path: Path, source: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Writes tensors with the metadata of another file."""
    with safetensors.safe_open(source, "pt") as file:
        metadata = file.metadata()
    del metadata["pfstorer_sha256"]  # as in the file of another program
    safetensors.torch.save_file(tensors, path, metadata)
    return path
