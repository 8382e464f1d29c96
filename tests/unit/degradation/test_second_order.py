import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sample_pictures import picture
from scipy import ndimage

from pfstorer_core.degradation.config import DegradationConfig, StageConfig
from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade, degrade_to_size
from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.resizing import resize_bicubic

# One stage that changes nothing but what a test switches on; JPEG 100 is the least of it.
PLAIN_STAGE = StageConfig(
    blur_sigma=(0.0, 0.0),
    sinc_probability=0.0,
    anisotropic_probability=0.0,
    kernel_weights=(1.0, 0.0, 0.0),
    resize_weights=(0.0, 0.0, 1.0),
    noise_sigma=(0.0, 0.0),
    jpeg_quality=(100.0, 100.0),
)


def plain(**stage: object) -> DegradationConfig:
    return DegradationConfig(
        first=replace(PLAIN_STAGE, **stage),
        second_order_probability=0.0,
        downsample=(1.0, 1.0),
        final_sinc_probability=0.0,
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return -10.0 * (a - b).square().mean(dim=(1, 2, 3)).log10()


@pytest.mark.parametrize("preset", PRESETS)
def test_same_generator_state_gives_the_same_and_global_state_stays(preset: str) -> None:
    images = picture().expand(4, -1, -1, -1)
    before = torch.get_rng_state()
    first = degrade(images, PRESETS[preset], seeded(3))
    assert torch.equal(first, degrade(images, PRESETS[preset], seeded(3)))
    assert not torch.equal(first, degrade(images, PRESETS[preset], seeded(4)))
    assert torch.equal(before, torch.get_rng_state())
    # The four items are the same picture: each has drawn its own degradation.
    assert all(not torch.equal(first[0], other) for other in first[1:])


def test_batch_equals_its_items_one_by_one() -> None:
    images = torch.stack([picture(), picture().flip(-1), 1.0 - picture()])
    generator = seeded(7)
    single = [degrade(image[None], PRESETS["face"], generator) for image in images]
    together = degrade(images, PRESETS["face"], seeded(7))
    assert torch.equal(together, torch.cat(single))


def test_items_do_not_touch_each_other() -> None:
    images = picture().repeat(3, 1, 1, 1)
    kept = degrade(images, PRESETS["extreme"], seeded(1))
    images[1] = 0.0
    changed = degrade(images, PRESETS["extreme"], seeded(1))
    assert torch.equal(kept[[0, 2]], changed[[0, 2]])
    assert not torch.equal(kept[1], changed[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_results_are_sound(preset: str) -> None:
    images = torch.stack([picture(), torch.zeros(3, 128, 128), torch.ones(3, 128, 128)])
    images = images.repeat(8, 1, 1, 1)
    kept = images.clone()
    result = degrade(images, PRESETS[preset], seeded())
    assert result.shape == images.shape and result.dtype == images.dtype
    assert bool(result.isfinite().all())
    assert float(result.min()) >= 0.0 and float(result.max()) <= 1.0
    assert torch.equal(images, kept)


def test_presets_lose_more_in_rising_order() -> None:
    images = picture().expand(32, -1, -1, -1)
    loss = {p: psnr(degrade(images, PRESETS[p], seeded()), images) for p in PRESETS}
    mean = {p: float(v.mean()) for p, v in loss.items()}
    assert mean["light"] > mean["medium"] + 2.0 > mean["extreme"] + 4.0
    # The face preset covers mild to heavy.
    assert float(loss["face"].max()) > mean["medium"] + 4.0
    assert float(loss["face"].min()) < mean["medium"] - 1.0


@pytest.mark.parametrize("preset", PRESETS)
def test_small_pictures_have_sizes_of_the_preset_and_8_bits(preset: str) -> None:
    images = picture().expand(40, -1, -1, -1)
    low, high = PRESETS[preset].downsample
    sides = []
    for small in degrade_to_size(images, PRESETS[preset], seeded()):
        assert small.shape == (3, small.shape[-1], small.shape[-1])
        assert torch.equal((small * 255.0).round() / 255.0, small)
        sides.append(small.shape[-1])
    assert min(sides) >= round(128 / high) and max(sides) <= round(128 / low)
    # The draws reach well into both ends (log scale).
    spread = math.log(max(sides) / min(sides)) / math.log(high / low)
    assert spread > 0.75


def test_extreme_reaches_ten_pixels() -> None:
    images = picture().expand(60, -1, -1, -1)
    sides = [s.shape[-1] for s in degrade_to_size(images, PRESETS["extreme"], seeded())]
    assert min(sides) in (10, 11)


def test_degrade_is_the_small_picture_scaled_up() -> None:
    images = picture().expand(5, -1, -1, -1)
    small = degrade_to_size(images, PRESETS["medium"], seeded(2))
    up = torch.cat([resize_bicubic(s[None], (128, 128)) for s in small])
    assert torch.equal(up, degrade(images, PRESETS["medium"], seeded(2)))


def test_requested_size_is_kept() -> None:
    small = degrade_to_size(picture()[None].repeat(3, 1, 1, 1), PRESETS["face"], seeded(), (17, 9))
    assert [tuple(s.shape) for s in small] == [(3, 17, 9)] * 3
    with pytest.raises(PFStorerError, match="at least"):
        degrade_to_size(picture()[None], PRESETS["face"], seeded(), (0, 9))


def test_jpeg_is_that_of_pillow_and_leaves_blocks() -> None:
    image = picture()
    # Several items, so that the JPEG comes before as well as after the last resize.
    items = degrade(image.expand(8, -1, -1, -1), plain(jpeg_quality=(10.0, 10.0)), seeded())
    got = items[0]
    file = io.BytesIO()
    pixels = (image * 255.0).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=10)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255.0
    assert all(torch.equal(item, expected) for item in items)
    # Steps across the borders of 8 x 8 blocks stand out against those inside.
    steps = (got - image).diff(dim=-1).abs().mean(dim=(0, 1))  # (W - 1,)
    at_border = torch.arange(1, 128) % 8 == 0
    assert float(steps[at_border].mean()) > 1.3 * float(steps[~at_border].mean())


def test_jpeg_of_lower_quality_loses_more() -> None:
    images = picture()[None]
    losses = [
        float(psnr(degrade(images, plain(jpeg_quality=(q, q)), seeded()), images))
        for q in (95.0, 60.0, 30.0, 10.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 5.0


@pytest.mark.parametrize(("poisson", "expected"), [(0.0, 12.0), (1.0, 12.0 * 0.5)])
def test_noise_has_the_asked_deviation(poisson: float, expected: float) -> None:
    flat = torch.full((1, 3, 128, 128), 0.25)  # Poisson noise is sqrt(0.25) of that at white
    config = plain(
        noise_sigma=(12.0, 12.0), poisson_probability=poisson, grey_noise_probability=1.0
    )
    noisy = degrade(flat, config, seeded()) * 255.0
    assert float(noisy.std()) == pytest.approx(expected, rel=0.05)
    assert float(noisy.mean()) == pytest.approx(0.25 * 255.0, abs=0.5)


def test_grey_noise_is_the_same_in_all_channels() -> None:
    flat = torch.full((1, 3, 64, 64), 0.5)

    def colour(grey: float) -> float:
        config = plain(noise_sigma=(20.0, 20.0), grey_noise_probability=grey)
        noisy = degrade(flat, config, seeded())
        return float((noisy[:, 0] - noisy[:, 2]).std())

    assert colour(1.0) < 0.01 < 0.03 < colour(0.0)


@pytest.mark.parametrize("side", [128, 256])
def test_blur_scales_with_the_picture(side: int) -> None:
    image = picture(side, side)
    got = degrade(image[None], plain(blur_sigma=(8.0, 8.0)), seeded())[0]
    sigma = 8.0 * side / 512.0
    expected = ndimage.gaussian_filter(image.numpy(), (0, sigma, sigma), mode="nearest", truncate=3)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # JPEG keeps it best
    difference = ((got - torch.from_numpy(expected)) * luma).sum(0)
    assert float(difference.abs().max()) < 0.01


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("colour", [(0.8, 0.55, 0.45), (0.35, 0.25, 0.2), (0.3, 0.5, 0.7)])
def test_flat_colour_does_not_drift(preset: str, colour: tuple[float, float, float]) -> None:
    flat = torch.tensor(colour)[None, :, None, None].expand(24, 3, 64, 64)
    drift = degrade(flat, PRESETS[preset], seeded()).mean(dim=(2, 3)) - torch.tensor(colour)
    # Coarse JPEG rounds the mean of one picture, but in no direction.
    assert float(drift.mean(dim=0).abs().max()) < 0.008
    assert float(drift.abs().max()) < 0.06


@pytest.mark.parametrize("size", [(1, 64), (64, 1), (1, 1), (37, 53), (128, 40), (9, 200)])
@pytest.mark.parametrize("preset", PRESETS)
def test_any_size(size: tuple[int, int], preset: str) -> None:
    images = picture(*size).clamp(0.0, 1.0).expand(4, -1, -1, -1)
    result = degrade(images, PRESETS[preset], seeded())
    assert result.shape == images.shape and bool(result.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_is_kept_and_no_gradient_flows(dtype: torch.dtype) -> None:
    images = picture()[None].to(dtype).requires_grad_()
    result = degrade(images, PRESETS["light"], seeded())
    assert result.dtype == dtype and not result.requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "give \\(B, 3, H, W\\)"),
        (torch.zeros(1, 4, 8, 8), "give \\(B, 3, H, W\\)"),
        (torch.zeros(1, 3, 0, 8), "give \\(B, 3, H, W\\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floats"),
        (torch.full((1, 3, 8, 8), -1.5), "from -1.5"),
        (torch.full((1, 3, 8, 8), 255.0), "to 255, expected"),
        (torch.full((1, 3, 8, 8), math.nan), "not finite"),
    ],
)
def test_wrong_pictures_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(PFStorerError, match=message):
        degrade(images, PRESETS["light"], seeded())
