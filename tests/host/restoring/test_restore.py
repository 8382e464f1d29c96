"""Images of any size restored from pixels to pixels, with ComfyUI's own samplers."""

from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from golden_weights import relative_l2
from tiled_sampling import record_forwards
from tiny_models import LATENT, image, prompt, random_adapter, write_bundled

from pfstorer_core import host
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.feedback import RestoreReport
from pfstorer_core.host.patch.model import restorer_wrapper
from pfstorer_core.host.restoring.settings import STARTS
from pfstorer_core.host.tiles.padding import pad
from pfstorer_core.pictures import color
from pfstorer_core.pictures.resizing import resize_bicubic

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


@pytest.mark.parametrize("tile_size", [0, 32])
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_samplers(each, sampler_name: str, tile_size: int) -> None:
    out = restore(each, image(), sampler_name=sampler_name, tile_size=tile_size)
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
        ((8, 700), {"tile_size": 64}, (8, 700)),
        ((2, 2600), {"steps": 1}, (2, 2600)),
        ((75, 61), {"tile_size": 40, "overlap": 0.5}, (75, 61)),
        ((5, 7), {"scale": 20.0}, (100, 140)),
        ((1, 1), {"scale": 20.0}, (20, 20)),
        ((40, 300), {"scale": 2}, (80, 600)),
    ],
)
def test_the_output_has_the_asked_size(loaded, size, settings: dict, expected) -> None:
    out = restore(loaded, image(size), **settings)
    assert out.shape == (1, *expected, 3)
    assert out.isfinite().all()


def test_padding_mirrors_the_picture() -> None:
    pixels = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 3, 1, 4)
    padded = pad(pixels, (2, 12))
    assert padded.shape == (1, 3, 2, 12)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1]


def test_a_padded_picture_is_restored_as_if_its_mirror_belonged_to_it(loaded) -> None:
    small = image((60, 52))
    mirrored = pad(small.movedim(-1, 1), (64, 56)).movedim(1, -1)
    whole = restore(loaded, mirrored, color_fix="none")
    assert torch.equal(restore(loaded, small, color_fix="none"), whole[:, :60, :52])


@pytest.mark.parametrize("settings", [{}, {"tile_size": 16}])
def test_alpha_is_kept_and_does_not_matter(loaded, settings: dict[str, Any]) -> None:
    pixels = image((40, 40))
    alpha = torch.rand(1, 40, 40, 1, generator=torch.Generator().manual_seed(3))
    out = restore(loaded, torch.cat([pixels, alpha], dim=-1), **settings)
    assert torch.equal(out[..., :3], restore(loaded, pixels, **settings))
    assert torch.equal(out[..., 3:], alpha)
    scaled = restore(loaded, torch.cat([pixels, alpha], dim=-1), scale=1.5, **settings)
    assert scaled.shape == (1, 60, 60, 4)


@pytest.mark.parametrize("color_fix", ["wavelet", "none"])
def test_grey_pictures_stay_grey(loaded, color_fix: str) -> None:
    grey = image()[..., :1]
    report = RestoreReport()
    out = restore(loaded, grey, color_fix=color_fix, tile_size=32)
    equal = restore(
        loaded, grey.expand(-1, -1, -1, 3), color_fix=color_fix, tile_size=32, report=report
    )
    assert torch.equal(out, equal)
    assert torch.equal(out, out[..., :1].expand(-1, -1, -1, 3))
    assert relative_l2(out, grey.expand(-1, -1, -1, 3)) > 1e-3
    assert "1 of 1 images are grey and stay so" in report.lines


def test_grey_and_coloured_pictures_in_one_batch(loaded) -> None:
    coloured = image(seed=2)
    pixels = torch.cat([coloured, coloured[..., :1].expand(-1, -1, -1, 3)])
    out = restore(loaded, pixels)
    assert torch.equal(out[1], out[1, ..., :1].expand(-1, -1, 3))
    assert (out[0].amax(-1) - out[0].amin(-1)).max() > 0.05
    assert relative_l2(out[:1], restore(loaded, coloured)) < 1e-5


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "uni_pc"])
@pytest.mark.parametrize("tile_size", [0, 32])
def test_law_3_a_batch_equals_its_items(loaded, sampler_name: str, tile_size: int) -> None:
    pixels = image((48, 64), batch=3)
    settings = {"sampler_name": sampler_name, "seed": 5, "cfg": 2.0, "tile_size": tile_size}
    batch = restore(loaded, pixels, **settings)
    for item in range(3):
        alone = restore(loaded, pixels[item : item + 1], **settings)
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


@pytest.mark.parametrize("start", STARTS)
def test_both_starts(loaded, start: str) -> None:
    _, _, vae = loaded
    model, forwards = record_forwards(loaded[0])
    pixels = image()
    out = host.restore(model, vae, pixels, steps=1, seed=4, start=start)
    assert out.isfinite().all()
    lq_latent = vae.encode(pixels).cpu()
    noise = comfy.sample.prepare_noise(lq_latent, 4)
    share = 0.0683 * LATENT["scale_factor"] if start == "LQ image" else 0
    torch.testing.assert_close(forwards[0].x.cpu(), noise + share * lq_latent, rtol=0, atol=1e-3)


def test_less_denoising_stays_closer_to_the_input(loaded) -> None:
    pixels = image()
    near, far = (
        relative_l2(restore(loaded, pixels, steps=4, denoise=d, color_fix="none"), pixels)
        for d in (0.05, 1.0)
    )
    assert near < far


def test_prompts_can_be_given(loaded) -> None:
    plain = restore(loaded, image(), cfg=2.0, color_fix="none")
    positive = restore(loaded, image(), cfg=2.0, color_fix="none", positive=prompt(1))
    negative = restore(
        loaded, image(), cfg=2.0, color_fix="none", positive=prompt(1), negative=prompt(2)
    )
    assert relative_l2(positive, plain) > 1e-3
    assert relative_l2(negative, positive) > 1e-3


def test_law_2_the_model_is_the_same_after_the_run(loaded) -> None:
    model = host.apply_identity(loaded[0], random_adapter(loaded[0]), 1.0, torch.ones(1, 8, 8))

    def state() -> tuple[Any, ...]:
        options = model.model_options["transformer_options"]
        wrappers = {
            kind: {key: list(found) for key, found in by_key.items()}
            for kind, by_key in model.wrappers.items()
        }
        weights = [float(p.double().sum()) for p in model.model.parameters()]
        return wrappers, set(options), restorer_wrapper(model).identities, weights

    before = state()
    pixels = image((64, 48))
    settings = {"tile_size": 32, "encoder_interval": 2, "cfg": 2.0}
    first = host.restore(model, loaded[2], pixels, steps=2, **settings)
    other = host.restore(loaded[0], loaded[2], pixels, steps=2, **settings)
    again = host.restore(model, loaded[2], pixels, steps=2, **settings)
    assert state() == before
    assert torch.equal(first, again) and relative_l2(first, other) > 1e-3


def test_the_input_stays_as_it_is(loaded) -> None:
    for pixels in (image((16, 16)), image((1, 1))[..., :1].expand(-1, -1, -1, 3).clone()):
        before = pixels.clone()
        restore(loaded, pixels)
        assert torch.equal(pixels, before)


class TestUpscaling:
    """The tiny restorer is made for 128 px, which is four times the picture."""

    PIXELS = image((32, 24))
    SIZES = ((128, 96), (256, 192))

    def test_progressive_is_one_pass_after_the_other(self, loaded) -> None:
        settings = {"color_fix": "none", "upscaling": "one pass"}
        expected = self.PIXELS
        for size in self.SIZES:
            expected = restore(loaded, expected, size=size, **settings)
        report = RestoreReport()
        passes = {"upscaling": "progressive", "color_fix": "none", "report": report}
        out = restore(loaded, self.PIXELS, scale=8.0, **passes)
        assert relative_l2(out, expected) < 1e-5
        for number, (height, width) in enumerate(self.SIZES, 1):
            told = f"Pass {number} of 2, {width} x {height} px in "
            assert any(line.startswith(told) for line in report.lines)
        at_once = restore(loaded, self.PIXELS, scale=8.0, **settings)
        assert relative_l2(at_once, expected) > 1e-2

    @pytest.mark.parametrize("upscaling", ["plain", "auto"])
    def test_plain_only_scales_what_is_restored_at_the_known_size(self, loaded, upscaling) -> None:
        known = restore(loaded, self.PIXELS, size=self.SIZES[0], upscaling="one pass")
        expected = resize_bicubic(known.movedim(-1, 1), self.SIZES[1]).movedim(1, -1)
        report = RestoreReport()
        out = restore(loaded, self.PIXELS, scale=8.0, upscaling=upscaling, report=report)
        assert torch.equal(out, expected)
        assert "Scaled from 96 x 128 to 192 x 256 px" in report.lines


class TestWorkingSize:
    """What the bundled restorer, of 128 px, makes of large blurred and of sharp pictures."""

    SHARP = portrait_set(7, 1, 0, 388).movedim(1, -1)  # (1, 388, 388, 3)

    def test_large_blurred_pictures_are_restored_at_half_their_size(self, loaded) -> None:
        pixels, report = image((400, 48)), RestoreReport()
        small = resize_bicubic(pixels.movedim(-1, 1), (200, 24)).movedim(1, -1)
        known = restore(loaded, small, upscaling="one pass").movedim(-1, 1)
        out = restore(loaded, pixels, report=report)
        assert torch.equal(out, resize_bicubic(known, (400, 48)).movedim(1, -1))
        assert "The picture is blurred at 48 x 400 px, so it is made smaller" in report.lines
        assert "Scaled from 24 x 200 to 48 x 400 px" in report.lines

    def test_sharp_pictures_stay_as_they_are(self, loaded) -> None:
        report = RestoreReport()
        out = restore(loaded, self.SHARP, report=report)
        assert torch.equal(out, self.SHARP) and out.data_ptr() != self.SHARP.data_ptr()
        assert any(line.startswith("1 of 1 images are so sharp") for line in report.lines)
        assert not any("1 tile of" in line for line in report.lines)

    def test_each_picture_of_a_batch_stays_or_is_restored(self, loaded) -> None:
        soft = image((388, 388))
        out = restore(loaded, torch.cat([self.SHARP, soft]), steps=1)
        assert torch.equal(out[:1], self.SHARP)
        alone = restore(loaded, soft, steps=1, upscaling="one pass")  # the sharp one decides
        assert relative_l2(out[1:], alone) < 1e-5

    def test_smaller_ones_are_restored(self, loaded) -> None:
        small = resize_bicubic(self.SHARP.movedim(-1, 1), (96, 96)).movedim(1, -1)
        assert torch.equal(restore(loaded, small), restore(loaded, small, upscaling="one pass"))

    @pytest.mark.parametrize("settings", [{"upscaling": "one pass"}, {"tile_size": 192}])
    def test_what_a_user_chooses_is_done(self, loaded, settings: dict[str, Any]) -> None:
        assert relative_l2(restore(loaded, self.SHARP, steps=1, **settings), self.SHARP) > 1e-3


def test_areas_belong_to_the_output(loaded) -> None:
    """In latent pixels or as shares, and in passes of smaller sizes as well."""
    settings = {"steps": 1, "scale": 5.0, "color_fix": "none"}
    in_pixels = [*prompt(1), *prompt(2, area=(12, 20, 8, 10))]  # of 25 x 40
    shares = (12 / 25, 20 / 40, 8 / 25, 10 / 40)
    in_shares = [*prompt(1), *prompt(2, area=("percentage", *shares))]
    for upscaling in ("one pass", "progressive"):
        settings |= {"upscaling": upscaling}
        one, other, none = (
            restore(loaded, image((20, 32)), positive=positive, **settings)
            for positive in (in_pixels, in_shares, prompt(1))
        )
        assert torch.equal(one, other)
        assert relative_l2(one, none) > 1e-4


def test_previews_of_extreme_pictures(loaded, monkeypatch) -> None:
    """The host's previewer gets the whole picture, scaled down."""
    sizes: list[tuple[int, int]] = []

    def show(value: int, total: int, preview: Any, **_: Any) -> None:
        sizes.append(preview[1].size)

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", show)
    restore(loaded, image((2, 2600)), steps=1, upscaling="one pass")
    restore(loaded, image((700, 600)), steps=1, upscaling="one pass")
    assert sizes == [(128, 1), (109, 128)]


def test_encoder_interval_1_is_the_default(loaded) -> None:
    default = restore(loaded, image(), steps=4)
    assert torch.equal(restore(loaded, image(), steps=4, encoder_interval=1), default)
    reused = restore(loaded, image(), steps=4, encoder_interval=4)
    assert 0 < relative_l2(reused, default) < 0.5


class TestRefusals:
    def test_an_output_without_pixels(self, loaded) -> None:
        with pytest.raises(PFStorerError, match=r"would be 1 x 0 pixels; choose a larger"):
            restore(loaded, image((4, 8)), scale=0.1)

    @pytest.mark.parametrize("shape", [(64, 64, 3), (1, 64, 64, 2), (0, 64, 64, 3), (1, 3, 64, 64)])
    def test_what_is_no_image(self, loaded, shape: tuple[int, ...]) -> None:
        with pytest.raises(PFStorerError, match="The image has the shape"):
            restore(loaded, torch.zeros(shape))

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"fidelity": 0.5}, "VAE has no CFW fusion layers; connect the VAE of 'Load CFW Deco"),
            ({"fidelity": 1.5}, r"fidelity is 1.5; choose 0 \(plain VAE\) to 1"),
            ({"encoder_interval": 0}, "encoder_interval is 0 and feather 16; choose 1 or more"),
            ({"feather": -1}, "encoder_interval is 1 and feather -1"),
        ],
    )
    def test_settings_out_of_range(self, loaded, settings: dict[str, Any], sentence: str) -> None:
        with pytest.raises(PFStorerError, match=sentence):
            restore(loaded, image(), **settings)

    @pytest.mark.parametrize("name", ["start", "color_fix", "upscaling"])
    def test_unknown_choices(self, loaded, name: str) -> None:
        with pytest.raises(PFStorerError, match=f"{name} is 'other'; choose one of"):
            restore(loaded, image(), **{name: "other"})

    def test_a_model_without_restorer(self, loaded) -> None:
        from pfstorer_core.host.load import bundled

        path: Path = loaded[0].cached_patcher_init[1][0]
        raw, _, vae = bundled.load_bundled(path)
        with pytest.raises(PFStorerError, match="has no restorer; connect the MODEL that 'Load"):
            host.restore(raw, vae, image())
