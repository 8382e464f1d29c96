"""Training of a base restorer on photos, through the host's own MODEL, CLIP and VAE."""

import dataclasses
import hashlib

import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from PIL import Image
from tiny_models import image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.load.bundled import load_bundled
from pfstorer_core.host.load.folders import MINI_RESTORER_PATH
from pfstorer_core.host.load.restorer import load_base_restorer
from pfstorer_core.host.restoring.restore import restore
from pfstorer_core.host.train.base import BaseTraining, NewRestorer, Pairs, train_base_restorer
from pfstorer_core.host.train.from_model import training_schedule
from pfstorer_core.pictures.photos import list_photos
from pfstorer_core.restorers.files import load, save
from pfstorer_core.restorers.stablesr.encoder import EncoderConfig
from pfstorer_core.training.base import BaseTrainingConfig
from pfstorer_core.training.loop import LoopConfig
from pfstorer_core.training.photo_views import PhotoViews

ENCODER = EncoderConfig(
    in_channels=load(MINI_RESTORER_PATH).info.config.in_channels,
    model_channels=32,
    out_channels=32,
    num_res_blocks=1,
    attention_resolutions=(4,),
    channel_mult=(1, 1, 1),
)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        picture = (portrait_set(n, 1, seed=n, size=160)[0] * 255).byte().movedim(0, -1).numpy()
        Image.fromarray(picture).save(folder / f"{n}.png")
    return folder


def hash_of(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(photos, out, steps=3, checkpoint=None, encoder=ENCODER, **settings):
    checkpoint = checkpoint or load_bundled(MINI_RESTORER_PATH)
    model = checkpoint[0]
    before = hash_of(model.model.diffusion_model)
    source = PhotoViews(list_photos([photos]), 64)
    loop = LoopConfig(steps=steps, sample_every=steps, warmup_steps=0)
    restorer, done = train_base_restorer(
        checkpoint,
        NewRestorer("trained", encoder, {"hidden": 16}),
        Pairs(source, [(1.0, PRESETS["medium"])], capacity=16),
        BaseTraining(loop, BaseTrainingConfig(batch=4), **settings),
        out,
    )
    assert hash_of(model.model.diffusion_model) == before, "the base must stay as it is"
    return restorer, done


def test_trained_restorer_is_a_file_that_loads(photos, tmp_path):
    restorer, done = train(photos, tmp_path / "out")
    assert done
    assert Image.open(tmp_path / "out" / "samples" / "000003.png").size == (4 * 64, 3 * 64)
    assert any(restorer.sft(site).mlp_gamma.weight.abs().max() > 0 for site in restorer.sites), (
        "nothing was learned"
    )
    save(restorer, tmp_path / "trained.safetensors")
    again = load(tmp_path / "trained.safetensors")
    assert again.info.prediction_type == "v_prediction"
    assert again.sites == restorer.sites
    for site in again.sites:
        assert torch.equal(again.sft(site).mlp_gamma.weight, restorer.sft(site).mlp_gamma.weight)


def test_stable_diffusion_xl_takes_its_pooled_text_along(photos, tmp_path):
    from tiny_supir import sdxl  # skips where ComfyUI has no SUPIR

    checkpoint = sdxl()
    encoder = dataclasses.replace(ENCODER, in_channels=4)
    restorer, _ = train(photos, tmp_path / "out", 2, checkpoint, encoder)
    assert restorer.info.context_dim == checkpoint[0].model.model_config.unet_config["context_dim"]
    save(restorer, tmp_path / "trained.safetensors")
    model, _, vae = load_base_restorer(tmp_path / "trained.safetensors", loaded=checkpoint)
    assert restore(model, vae, image((64, 64)), steps=1).isfinite().all()


def test_interrupted_run_goes_on_to_the_same_result(photos, tmp_path):
    whole, _ = train(photos, tmp_path / "whole")
    _, done = train(photos, tmp_path / "parts", max_seconds=0)
    assert not done
    parts, done = train(photos, tmp_path / "parts")
    assert done
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("sampling", "zsnr", "kind"),
    [
        ("v_prediction", False, "v_prediction"),
        ("v_prediction", True, "v_prediction"),
        ("eps", False, "epsilon"),
    ],
)
def test_the_noise_is_that_of_the_models_sampling(sampling: str, zsnr: bool, kind: str) -> None:
    model, _, _ = load_base_restorer(MINI_RESTORER_PATH)
    (changed,) = ModelSamplingDiscrete().patch(model, sampling, zsnr)
    schedule = training_schedule(changed)
    sigmas = changed.get_model_object("model_sampling").sigmas
    assert schedule.config["prediction_type"] == kind
    assert len(schedule.alphas_cumprod) == len(sigmas)
    torch.testing.assert_close(schedule.alphas_cumprod, 1 / (1 + sigmas**2), rtol=1e-3, atol=1e-6)
    known = training_schedule(model).alphas_cumprod
    assert torch.allclose(known, schedule.alphas_cumprod, atol=1e-4) is not zsnr


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [("lcm", "a noise schedule that its UNet was not trained with"), ("x0", "predicts noise or v")],
)
def test_other_samplings_are_refused(sampling: str, sentence: str) -> None:
    model, _, _ = load_base_restorer(MINI_RESTORER_PATH)
    (changed,) = ModelSamplingDiscrete().patch(model, sampling, False)
    with pytest.raises(PFStorerError, match=sentence):
        training_schedule(changed)
