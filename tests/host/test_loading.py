"""Restorers become ComfyUI's MODEL, CLIP and VAE: bundled ones, and those for Stable Diffusion."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.sample
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy.cli_args import args
from golden_weights import relative_l2
from tiny_models import ENCODER, LATENT, TOKENS, UNET, image, random_restorer, write_bundled
from utils.extra_config import load_extra_path_config

import nodes
from pfstorer_core import host
from pfstorer_core import restorer as restorer_files
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host import bundled, loading, patches

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


def sample(model: Any, conditioning: Any, channels: int = 4, **settings: Any) -> torch.Tensor:
    latent = torch.zeros(1, channels, 16, 16)
    conditioned = host.condition_on_lq(model, torch.ones_like(latent) / 2)
    noise = comfy.sample.prepare_noise(latent, 1)
    settings = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", **settings}
    return comfy.sample.sample(
        conditioned,
        noise,
        positive=conditioning,
        negative=conditioning,
        latent_image=latent,
        disable_pbar=True,
        seed=1,
        **settings,
    )


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
        assert host.loading.restoration(model).info.name == "tiny"

    def test_an_epsilon_model_predicts_noise(self, tmp_path: Path) -> None:
        model, _, _ = host.load_base_restorer(write_bundled(tmp_path / "e.safetensors", "epsilon"))
        sampling = model.get_model_object("model_sampling")
        assert not isinstance(sampling, comfy.model_base.comfy.model_sampling.V_PREDICTION)
        assert sample(model, loading.restoration(model).empty_prompt).isfinite().all()

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

    def test_a_second_copy_for_training_is_the_same_model(self, loaded) -> None:
        model, _, _ = loaded
        build, arguments = model.cached_patcher_init
        copy_of_model = build(*arguments, disable_dynamic=True)
        second = model.clone(model_override=copy_of_model.get_clone_model_override())
        assert second.model is not model.model
        prompt = loading.restoration(model).empty_prompt
        assert torch.equal(sample(second, prompt), sample(model, prompt))
        weight = second.model.diffusion_model.out[2].weight
        assert not weight.is_inference()

    @pytest.mark.parametrize("key", ["model.diffusion_model.out.2.bias", "first_stage_model."])
    def test_missing_weights_are_named(self, tmp_path: Path, path: Path, key: str) -> None:
        tensors = safetensors.torch.load_file(path)
        gone = next(name for name in sorted(tensors) if name.startswith(key))
        del tensors[gone]
        broken = write_like(tmp_path / "broken.safetensors", path, tensors)
        with pytest.raises(PFStorerError, match=f"'broken.safetensors' lacks 1 tensors.*{gone}"):
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


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of ComfyUI's own UNet in half precision, without text encoder."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    for name, config in {"v1-5": SD15, "v2-1": SD21}.items():
        torch.manual_seed(2)
        unet = bundled.build_unet(copy.deepcopy(config))
        state = {f"model.diffusion_model.{k}": v.half() for k, v in unet.state_dict().items()}
        paths[name] = folder / f"{name}.safetensors"
        safetensors.torch.save_file(state, paths[name])
    return paths


def write_restorer(path: Path, config: dict[str, Any], prediction_type: str | None) -> Path:
    unet = bundled.build_unet(copy.deepcopy(config))
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
        assert loading.restoration(model).empty_prompt is None
        dtype = model.model.get_dtype_inference()
        (patcher,) = model.get_additional_models_with_key(patches.KEY)
        assert {p.dtype for p in patcher.model.parameters()} == {dtype}
        prompt = [[torch.randn(1, 77, config["context_dim"]), {}]]
        out = sample(model, prompt, cfg=2.0)
        assert out.isfinite().all()

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
        assert "BaseRestorer" in names


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

    ((cond, _),) = loading.restoration(model).empty_prompt
    ((same, _),) = nodes.CLIPTextEncode().encode(clip, "")[0]
    assert cond.shape == (1, 77, 768)
    assert torch.equal(cond, same)
    out = host.restore(model, vae, image((70, 50)), scale=1.5, steps=2)
    assert out.shape == (1, 105, 75, 3)
    assert out.isfinite().all()
    tiles = host.restore(model, vae, image((140, 100)), steps=1, tile_size=128)
    assert tiles.shape == (1, 140, 100, 3)
    assert tiles.isfinite().all()


class TestFolders:
    def test_the_mini_restorer_comes_first_and_other_files_are_found(
        self, base_directory: Path
    ) -> None:
        loading.register_folders()
        folder = base_directory / "models" / "pfstorer_restorers"
        assert folder.is_dir()
        (folder / "mine.ckpt").touch()
        (folder / "readme.txt").touch()
        names = loading.restorer_names()  # other tests may have left files there
        assert names[0] == "mini (bundled)"
        assert "mine.ckpt" in names and "readme.txt" not in names
        assert loading.restorer_path("mine.ckpt") == folder / "mine.ckpt"

    def test_registering_twice_changes_nothing_and_keeps_the_users_folders(
        self, tmp_path: Path
    ) -> None:
        folder_paths.add_model_folder_path("pfstorer_identities", str(tmp_path))
        loading.register_folders()
        loading.register_folders()
        paths, extensions = folder_paths.folder_names_and_paths["pfstorer_identities"]
        assert paths.count(str(tmp_path)) == 1
        assert len(paths) == 2
        assert extensions == {".safetensors"}
        _, extensions = folder_paths.folder_names_and_paths["pfstorer_restorers"]
        assert extensions == {".safetensors", ".ckpt", ".pt", ".pth"}

    def test_a_missing_file_is_named_with_its_folder(self) -> None:
        loading.register_folders()
        with pytest.raises(PFStorerError, match=r"no restorer 'gone.pt'; put .*pfstorer_restorers"):
            loading.restorer_path("gone.pt")
        with pytest.raises(PFStorerError, match=r"no checkpoint 'gone.pt'; put .*checkpoints"):
            loading.checkpoint_path("gone.pt")


def test_the_users_default_folder_stays_the_first(monkeypatch, tmp_path) -> None:
    """ComfyUI reads extra_model_paths.yaml before it loads custom nodes."""
    known = {name: (list(paths), set(kinds)) for name, (paths, kinds) in _known_folders().items()}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    config = tmp_path / "paths.yaml"
    config.write_text(
        f"studio:\n  is_default: true\n  pfstorer_identities: {tmp_path / 'people'}\n"
        f"other:\n  base_path: {tmp_path}\n  pfstorer_restorers: files\n"
    )
    monkeypatch.setattr(args, "extra_model_paths_config", [[str(config)]])
    load_extra_path_config(str(config))
    loading.register_folders()
    own = {name: str(tmp_path / "models" / name) for name in loading.EXTENSIONS}
    people, _ = known["pfstorer_identities"]
    assert people == [str(tmp_path / "people"), own["pfstorer_identities"]]
    restorers, _ = known["pfstorer_restorers"]
    assert restorers == [own["pfstorer_restorers"], str(tmp_path / "files")]


def _known_folders() -> dict[str, Any]:
    """ComfyUI's folders without the plugin's."""
    found = folder_paths.folder_names_and_paths
    return {name: found[name] for name in found if name not in loading.EXTENSIONS}
