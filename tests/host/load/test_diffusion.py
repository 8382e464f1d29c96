"""Stable Diffusion from folders and other loaders, in place of a checkpoint."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import comfy.diffusers_load
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import safetensors.torch
import torch
from tiny_models import ENCODER, UNET, image, random_restorer, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import base_of
from pfstorer_core.host.load import folders
from pfstorer_core.host.load.bundled import load_bundled
from pfstorer_core.host.load.unet import build_unet
from pfstorer_core.restorers import files as restorer_files

# The smallest folder whose layout ComfyUI knows (SDXS): Stable Diffusion 1.5 with one residual
# block a level and no middle.
SMALL = {
    "unet": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def write_folder(folder: Path, sizes: dict[str, dict[str, Any]]) -> Path:
    """Writes random weights in half precision, named as in the folders that people have."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        parts = {
            "unet/diffusion_pytorch_model": UNet2DConditionModel(**sizes["unet"]),
            "vae/diffusion_pytorch_model": AutoencoderKL(**VAE),
            "text_encoder/model": CLIPTextModel(CLIPTextConfig(**sizes["text_encoder"])),
        }
    generator = torch.Generator().manual_seed(4)
    for name, module in parts.items():
        state = {}
        for key, parameter in module.named_parameters():
            if name.startswith("text") and not key.startswith("text_model."):
                key = f"text_model.{key}"  # newer transformers leave it out
            scale = 0.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.05
            norm = 1.0 if parameter.ndim == 1 and key.endswith("weight") else 0.0
            state[key] = (torch.randn(parameter.shape, generator=generator) * scale + norm).half()
        (folder / name).parent.mkdir(parents=True)
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline"}))
    return folder


@pytest.fixture(scope="module")
def folder(base_directory: Path) -> Path:
    """A folder where ComfyUI looks for such."""
    place = Path(folder_paths.get_folder_paths("diffusers")[0], "mirror", "small")
    return write_folder(place, SMALL)


def write_restorer(path: Path, unet: Any) -> Path:
    restorer = random_restorer(unet, dataclasses.replace(ENCODER, channel_mult=(1, 1, 1)))
    restorer.info = dataclasses.replace(restorer.info, prediction_type=None)
    restorer_files.save(restorer, path)
    return path


@pytest.mark.slow
def test_folder_and_split_files_give_the_picture_of_their_checkpoint(
    folder: Path, tmp_path: Path
) -> None:
    """The checkpoint is what ComfyUI saves of the folder."""
    model, clip, vae = comfy.diffusers_load.load_diffusers(str(folder))
    checkpoint = tmp_path / "small.safetensors"
    comfy.sd.save_checkpoint(str(checkpoint), model, clip, vae)
    restorer = write_restorer(tmp_path / "r.safetensors", model.model.diffusion_model)
    split = (
        comfy.sd.load_diffusion_model(str(next((folder / "unet").glob("*.safetensors")))),
        comfy.sd.load_clip([str(next((folder / "text_encoder").glob("*.safetensors")))]),
        comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(next((folder / "vae").glob("*.saf*"))))),
    )
    given = (
        host.load_base_restorer(restorer, checkpoint),
        host.load_base_restorer(restorer, folder),
        host.load_base_restorer(restorer, loaded=split),
    )
    pictures, bases = [], []
    for model, clip, vae in given:
        assert clip is not None
        bases.append(base_of(model))
        pictures.append(host.restore(model, vae, image((40, 40)), scale=1.0, steps=1))
    for base, picture in zip(bases[1:], pictures[1:], strict=True):
        assert torch.equal(picture, pictures[0])
        assert base.unet_digests == bases[0].unet_digests
        assert torch.equal(base.empty_prompt[0][0], bases[0].empty_prompt[0][0])
    assert pictures[0].std() > 0.01


class TestFolders:
    def test_they_are_listed_after_the_checkpoints_and_found(self, folder: Path) -> None:
        assert folders.checkpoint_names()[-1] == "diffusers/mirror/small"
        assert folders.checkpoint_path("diffusers/mirror/small") == folder

    def test_a_changed_part_changes_the_state(self, folder: Path, tmp_path: Path) -> None:
        for part in ("unet", "vae", "text_encoder"):
            (tmp_path / part).mkdir()
        names = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
        for part, name in (names | {"text_encoder": "pytorch_model"}).items():
            (tmp_path / part / f"{name}.bin").write_bytes(b"1")
        before = folders.checkpoint_state(tmp_path)
        assert len(before) == 3
        (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"12")
        assert folders.checkpoint_state(tmp_path) != before

    def test_a_missing_one_is_named(self) -> None:
        with pytest.raises(PFStorerError, match=r"no folder 'gone' with a model_index.json"):
            folders.checkpoint_path("diffusers/gone")

    @pytest.mark.parametrize("part", ["unet", "vae"])
    def test_one_without_a_part_is_refused(self, part: str, folder: Path, tmp_path: Path) -> None:
        restorer = write_bundled(tmp_path / "r.safetensors")
        unbundled = restorer_files.load(restorer)
        unbundled.info = dataclasses.replace(unbundled.info, bundled=None)
        unbundled.bundled_state = None
        restorer_files.save(unbundled, restorer)
        shutil.copytree(folder, tmp_path / "half", ignore=lambda _, names: {part} & set(names))
        with pytest.raises(PFStorerError, match=rf"'half' has no file {part}/diffusion_pytorch"):
            host.load_base_restorer(restorer, tmp_path / "half")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A plain MODEL, CLIP and VAE: those of the tiny bundled restorer."""
    return load_bundled(write_bundled(tmp_path_factory.mktemp("plain") / "tiny.safetensors"))


class TestOtherLoaders:
    @pytest.fixture
    def restorer(self, parts: tuple[Any, Any, Any], tmp_path: Path) -> Path:
        found = random_restorer(parts[0].model.diffusion_model)
        restorer_files.save(found, tmp_path / "r.safetensors")
        return tmp_path / "r.safetensors"

    def test_they_take_the_checkpoints_place(
        self, parts: tuple[Any, Any, Any], restorer: Path
    ) -> None:
        model, clip, vae = host.load_base_restorer(restorer, loaded=parts)
        assert clip is parts[1] and vae is parts[2]
        assert base_of(model).empty_prompt is not None
        assert host.restore(model, vae, image(), steps=1).shape == (1, 64, 64, 3)

    def test_a_clip_may_be_left_out(self, parts: tuple[Any, Any, Any], restorer: Path) -> None:
        model, clip, _ = host.load_base_restorer(restorer, loaded=(parts[0], None, parts[2]))
        assert clip is None and base_of(model).empty_prompt is None

    @pytest.mark.parametrize("missing", [0, 2])
    def test_model_and_vae_go_together(
        self, missing: int, parts: tuple[Any, Any, Any], restorer: Path
    ) -> None:
        loaded = [None if k == missing else part for k, part in enumerate(parts)]
        with pytest.raises(PFStorerError, match="needs MODEL and VAE together"):
            host.load_base_restorer(restorer, loaded=tuple(loaded))

    def test_a_restorer_with_its_own_model_takes_no_other(
        self, parts: tuple[Any, Any, Any], tmp_path: Path
    ) -> None:
        bundled = write_bundled(tmp_path / "b.safetensors")
        with pytest.raises(PFStorerError, match="but a MODEL is connected; choose 'bundled"):
            host.load_base_restorer(bundled, loaded=parts)

    def test_a_model_that_has_a_restorer_is_refused(
        self, parts: tuple[Any, Any, Any], restorer: Path
    ) -> None:
        model, clip, vae = host.load_base_restorer(restorer, loaded=parts)
        with pytest.raises(PFStorerError, match="has a restorer already"):
            host.load_base_restorer(restorer, loaded=(model, clip, vae))

    def test_a_clip_of_another_stable_diffusion_is_refused(
        self, parts: tuple[Any, Any, Any], restorer: Path, tmp_path: Path
    ) -> None:
        wide = write_bundled(tmp_path / "wide.safetensors")
        clip = _clip_of_width(wide, 2 * UNET["context_dim"])
        with pytest.raises(PFStorerError, match=r"64 wide, but the UNet of the MODEL takes 32"):
            host.load_base_restorer(restorer, loaded=(parts[0], clip, parts[2]))

    def test_a_vae_of_other_latents_is_refused(
        self, parts: tuple[Any, Any, Any], restorer: Path
    ) -> None:
        other = copy.copy(parts[2])
        other.latent_channels = 16
        with pytest.raises(PFStorerError, match=r"16 channels, but the UNet of the MODEL takes 4"):
            host.load_base_restorer(restorer, loaded=(parts[0], parts[1], other))

    def test_what_is_no_unet_is_refused(self, parts: tuple[Any, Any, Any], restorer: Path) -> None:
        with pytest.raises(PFStorerError, match="connected as MODEL is no diffusion model"):
            host.load_base_restorer(restorer, loaded=(parts[1].patcher, parts[1], parts[2]))


def _clip_of_width(path: Path, width: int) -> Any:
    restorer = restorer_files.load(path)
    bundled, state = restorer.info.bundled, restorer.bundled_state
    assert bundled is not None and state is not None
    unet = {**bundled["unet"], "context_dim": width}
    state["cond_stage_model.prompt"] = torch.randn(3, width)
    state |= {f"model.diffusion_model.{k}": v for k, v in build_unet(unet).state_dict().items()}
    restorer.info = dataclasses.replace(restorer.info, bundled={**bundled, "unet": unet})
    restorer_files.save(restorer, path)
    return load_bundled(path)[1]
