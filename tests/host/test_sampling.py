"""Images restored from pixels to pixels, with ComfyUI's own samplers."""

from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from golden_weights import Goldens, relative_l2
from tiny_models import LATENT, image, write_bundled

from pfstorer_core import color, host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host import sampling

STEPS = 2
SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "uni_pc", "ddim", "lcm"]
SCHEDULERS = ["normal", "karras", "simple", "sgm_uniform", "beta", "ddim_uniform"]


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """MODEL and VAE, once for each kind of prediction."""
    folder = tmp_path_factory.mktemp("restorers")
    model, _, vae = host.load_base_restorer(
        write_bundled(folder / "tiny.safetensors", request.param)
    )
    return model, vae


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL, CLIP and VAE."""
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


def restore(loaded: Any, pixels: torch.Tensor, **settings: Any) -> torch.Tensor:
    return host.restore(loaded[0], loaded[-1], pixels, **{"steps": STEPS, **settings})


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_samplers(each, sampler_name: str) -> None:
    out = restore(each, image(), sampler_name=sampler_name)
    assert out.shape == (1, 64, 64, 3)
    assert out.isfinite().all() and 0 <= out.min() and out.max() <= 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(loaded, scheduler: str) -> None:
    assert restore(loaded, image(), scheduler=scheduler, steps=4).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("sampler_name", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_of_this_comfyui(loaded, sampler_name: str) -> None:
    assert restore(loaded, image(), sampler_name=sampler_name, steps=3).isfinite().all()


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((64, 64), {}, (64, 64)),
        ((37, 51), {}, (37, 51)),
        ((37, 51), {"scale": 2.5}, (92, 128)),
        ((100, 40), {"scale": 0.5}, (50, 20)),
        ((20, 30), {"size": (61, 7)}, (61, 7)),
        ((1, 1), {"size": (3, 5)}, (3, 5)),
        ((3, 200), {}, (3, 200)),
    ],
)
def test_the_output_has_the_asked_size(loaded, size, settings: dict, expected) -> None:
    out = restore(loaded, image(size), **settings)
    assert out.shape == (1, *expected, 3)
    assert out.isfinite().all()


def test_padding_mirrors_the_picture() -> None:
    pixels = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 3, 1, 4)
    padded = sampling._pad(pixels, 2, 12)
    assert padded.shape == (1, 3, 2, 12)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1]


def test_a_padded_picture_is_restored_as_if_its_mirror_belonged_to_it(loaded) -> None:
    small = image((60, 52))
    mirrored = sampling._pad(small.movedim(-1, 1), 64, 56).movedim(1, -1)
    whole = restore(loaded, mirrored, color_fix="none")
    assert torch.equal(restore(loaded, small, color_fix="none"), whole[:, :60, :52])


def test_alpha_is_kept_and_does_not_matter(loaded) -> None:
    pixels = image((40, 40))
    alpha = torch.rand(1, 40, 40, 1, generator=torch.Generator().manual_seed(3))
    out = restore(loaded, torch.cat([pixels, alpha], dim=-1))
    assert torch.equal(out[..., :3], restore(loaded, pixels))
    assert torch.equal(out[..., 3:], alpha)
    scaled = restore(loaded, torch.cat([pixels, alpha], dim=-1), scale=1.5)
    assert scaled.shape == (1, 60, 60, 4)


def test_a_grey_picture_is_restored_as_rgb(loaded) -> None:
    grey = image()[..., :1]
    assert torch.equal(restore(loaded, grey), restore(loaded, grey.expand(-1, -1, -1, 3)))


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "uni_pc"])
def test_law_3_a_batch_equals_its_items(loaded, sampler_name: str) -> None:
    pixels = image(batch=3)
    batch = restore(loaded, pixels, sampler_name=sampler_name, seed=5, cfg=2.0)
    for item in range(3):
        alone = restore(loaded, pixels[item : item + 1], sampler_name=sampler_name, seed=5, cfg=2.0)
        assert relative_l2(batch[item : item + 1], alone) < 1e-5


def test_law_3_seeds_reproduce(loaded) -> None:
    settings = {"sampler_name": "dpmpp_sde", "color_fix": "none"}
    first = restore(loaded, image(), seed=1, **settings)
    assert torch.equal(restore(loaded, image(), seed=1, **settings), first)
    assert relative_l2(restore(loaded, image(), seed=2, **settings), first) > 0.01


def test_colour_fixes_are_those_of_the_library(loaded) -> None:
    pixels = image().movedim(-1, 1)
    plain = restore(loaded, image(), color_fix="none").movedim(-1, 1)
    for name, fix in (("wavelet", color.wavelet_fix), ("adain", color.adain_fix)):
        fixed = restore(loaded, image(), color_fix=name).movedim(-1, 1)
        torch.testing.assert_close(fixed, fix(plain, pixels))


def first_inputs(model: Any) -> tuple[Any, list[torch.Tensor]]:
    """Returns a clone that notes what the UNet sees at each step."""
    inputs: list[torch.Tensor] = []

    def wrapper(executor, x, *args, **kwargs):
        inputs.append(x)
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    return model, inputs


def test_starting_from_the_lq_latent_is_the_references_start(loaded) -> None:
    """ComfyUI scales the first noise by 1.0 where the reference has 0.99767."""
    tensors = Goldens.find().tensors("sampling_start")
    lq_latent, noise = tensors["xT.lq_latent_scaled"], tensors["xT.noise"]
    model, inputs = first_inputs(loaded[0])
    raw = lq_latent / LATENT["scale_factor"]
    prompt = host.loading.restoration(model).empty_prompt
    comfy.sample.sample(
        host.condition_on_lq(model, raw),
        noise,
        1,
        1.0,
        "ddpm",
        "normal",
        prompt,
        prompt,
        raw,
        disable_pbar=True,
        seed=0,
    )
    expected = tensors["xT.out"] + (1 - 0.9976672530174255) * noise
    assert relative_l2(inputs[0], expected) < 1e-5


@pytest.mark.parametrize("start", sampling.STARTS)
def test_both_starts(loaded, start: str) -> None:
    _, _, vae = loaded
    model, inputs = first_inputs(loaded[0])
    pixels = image()
    out = host.restore(model, vae, pixels, steps=1, seed=4, start=start)
    assert out.isfinite().all()
    lq_latent = vae.encode(pixels)
    noise = comfy.sample.prepare_noise(lq_latent, 4)
    share = 0.0683 * LATENT["scale_factor"] if start == "LQ image" else 0
    torch.testing.assert_close(inputs[0], noise + share * lq_latent, rtol=0, atol=1e-3)


def test_less_denoising_stays_closer_to_the_input(loaded) -> None:
    pixels = image()
    near, far = (
        relative_l2(restore(loaded, pixels, steps=4, denoise=d, color_fix="none"), pixels)
        for d in (0.05, 1.0)
    )
    assert near < far


def test_prompts_can_be_given(loaded) -> None:
    def prompt(seed: int) -> list[Any]:
        return [[torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(seed)), {}]]

    plain = restore(loaded, image(), cfg=2.0, color_fix="none")
    positive = restore(loaded, image(), cfg=2.0, color_fix="none", positive=prompt(1))
    negative = restore(
        loaded, image(), cfg=2.0, color_fix="none", positive=prompt(1), negative=prompt(2)
    )
    assert relative_l2(positive, plain) > 1e-3
    assert relative_l2(negative, positive) > 1e-3


class TestRefusals:
    def test_an_output_larger_than_one_tile(self, loaded) -> None:
        with pytest.raises(PFStorerError, match=r"would be 600 x 20 pixels.* at most 512 x 512"):
            restore(loaded, image((10, 300)), scale=2)
        assert restore(loaded, image((8, 512)), steps=1).shape == (1, 8, 512, 3)

    def test_an_output_without_pixels(self, loaded) -> None:
        with pytest.raises(PFStorerError, match=r"would be 1 x 0 pixels; choose a larger"):
            restore(loaded, image((4, 8)), scale=0.1)

    @pytest.mark.parametrize("shape", [(64, 64, 3), (1, 64, 64, 2), (0, 64, 64, 3), (1, 3, 64, 64)])
    def test_what_is_no_image(self, loaded, shape: tuple[int, ...]) -> None:
        with pytest.raises(PFStorerError, match="The image has the shape"):
            restore(loaded, torch.zeros(shape))

    @pytest.mark.parametrize("name", ["start", "color_fix"])
    def test_unknown_choices(self, loaded, name: str) -> None:
        with pytest.raises(PFStorerError, match=f"{name} is 'other'; choose one of"):
            restore(loaded, image(), **{name: "other"})

    def test_a_model_without_restorer(self, loaded) -> None:
        from pfstorer_core.host import bundled

        path: Path = loaded[0].cached_patcher_init[1][0]
        raw, _, vae = bundled.load_bundled(path)
        with pytest.raises(PFStorerError, match="has no restorer; connect the MODEL that 'Load"):
            host.restore(raw, vae, image())

    @pytest.mark.parametrize("shape", [(1, 8, 16, 16), (1, 4, 1, 16, 16)])
    def test_a_latent_of_another_vae(self, loaded, shape: tuple[int, ...]) -> None:
        with pytest.raises(PFStorerError, match=r"takes \(batch, 4, height, width\); use the VAE"):
            host.condition_on_lq(loaded[0], torch.zeros(shape))


@pytest.mark.parametrize(
    ("scale", "longest_side", "expected"),
    [(1.0, 0, (30, 40)), (2.5, 0, (75, 100)), (2.5, 128, (96, 128)), (0.01, 0, (1, 1))],
)
def test_target_size(scale: float, longest_side: int, expected: tuple[int, int]) -> None:
    assert sampling.target_size(image((30, 40)), scale, longest_side) == expected
