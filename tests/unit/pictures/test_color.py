from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden_weights import TOLERANCE, Goldens, relative_l2
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.color import adain_fix, is_grey, to_grey, wavelet_fix

Fix = Callable[[Tensor, Tensor], Tensor]
both = pytest.mark.parametrize("fix", [wavelet_fix, adain_fix])


@pytest.mark.parametrize(("fix", "name"), [(wavelet_fix, "wavelet"), (adain_fix, "adain")])
def test_golden(fix: Fix, name: str, goldens: Goldens) -> None:
    tensors = goldens.tensors("color_fix")
    result = fix(tensors["a.target"], tensors["a.source"])
    assert relative_l2(result, tensors[f"a.{name}"]) <= TOLERANCE


@both
def test_own_colours_change_nothing(fix: Fix, generator: torch.Generator) -> None:
    image = torch.rand(2, 3, 24, 17, generator=generator)
    torch.testing.assert_close(fix(image, image), image)


@both
def test_constant_shift_is_undone(fix: Fix, generator: torch.Generator) -> None:
    image = 0.3 + 0.4 * torch.rand(1, 3, 24, 17, generator=generator)
    shift = torch.tensor([0.1, -0.2, 0.05]).view(1, 3, 1, 1)
    torch.testing.assert_close(fix(image + shift, image), image, rtol=1e-4, atol=1e-5)


@both
def test_batch_equals_its_items(fix: Fix, generator: torch.Generator) -> None:
    image, reference = (torch.rand(3, 3, 20, 9, generator=generator) for _ in range(2))
    items = [fix(image[i : i + 1], reference[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(fix(image, reference), torch.cat(items))


@both
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_thin_images(fix: Fix, size: tuple[int, int], generator: torch.Generator) -> None:
    image, reference = (torch.rand(1, 3, *size, generator=generator) for _ in range(2))
    result = fix(image, reference)
    assert result.shape == image.shape
    assert result.isfinite().all()
    assert result.min() >= 0
    assert result.max() <= 1


@both
def test_flat_image_takes_the_mean_colour(fix: Fix) -> None:
    image, reference = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.25)
    torch.testing.assert_close(fix(image, reference), reference)


@both
def test_result_is_clamped(fix: Fix, generator: torch.Generator) -> None:
    image = torch.rand(1, 3, 32, 32, generator=generator)
    # A reference half black, half white asks for more contrast than there is room for.
    reference = torch.zeros_like(image)
    reference[..., 16:] = 1
    result = fix(image, reference)
    assert (result == 0).any()
    assert (result == 1).any()
    assert 0 <= result.min() <= result.max() <= 1


@both
def test_half_precision_keeps_the_type(fix: Fix, generator: torch.Generator) -> None:
    image, reference = (torch.rand(1, 3, 64, 64, generator=generator) for _ in range(2))
    result = fix(image.half(), reference.half())
    assert result.dtype == torch.float16
    # It computes in single precision: what is rounded is the two pictures and the result.
    assert relative_l2(result, fix(image, reference)) < 3 * torch.finfo(torch.float16).eps / 2


def test_adain_takes_a_reference_of_any_size(generator: torch.Generator) -> None:
    image = torch.rand(1, 3, 40, 30, generator=generator)
    reference = 0.25 + 0.5 * torch.rand(1, 3, 10, 8, generator=generator)
    result = adain_fix(image, reference)
    torch.testing.assert_close(result.mean((2, 3)), reference.mean((2, 3)), atol=5e-3, rtol=0)


def test_wavelet_names_both_sizes() -> None:
    with pytest.raises(PFStorerError, match=r"30 x 40 .* 8 x 10 pixels"):
        wavelet_fix(torch.zeros(1, 3, 40, 30), torch.zeros(1, 3, 10, 8))


@both
@pytest.mark.parametrize(
    ("image", "reference", "message"),
    [
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8), r"The image .*\(1, 1, 8, 8\).*grey"),
        (torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8), r"The image .*\(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 0, 8), r"The colour reference .*\(1, 3, 0, 8"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8), "2 images and 1 colour references"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8), "holds uint8"),
    ],
)
def test_refusals(fix: Fix, image: Tensor, reference: Tensor, message: str) -> None:
    with pytest.raises(PFStorerError, match=message):
        fix(image, reference)


def blur(image: Tensor) -> Tensor:
    """The wavelet's coarse part, written as one convolution per level over the whole picture."""
    weights = torch.tensor([0.25, 0.5, 0.25])
    kernel = (weights[:, None] * weights).expand(3, 1, 3, 3)
    for d in (1, 2, 4, 8, 16):
        image = F.conv2d(F.pad(image, (d, d, d, d), mode="replicate"), kernel, groups=3, dilation=d)
    return image


@pytest.mark.parametrize("size", [(700, 2200), (1100, 600)])
def test_wavelet_bands_leave_no_border(size: tuple[int, int], generator: torch.Generator) -> None:
    image, reference = (torch.rand(2, 3, *size, generator=generator) for _ in range(2))
    whole = (image - blur(image) + blur(reference)).clamp(0, 1)
    torch.testing.assert_close(wavelet_fix(image, reference), whole, rtol=0, atol=1e-6)


def test_adain_takes_the_statistics_of_the_whole_picture(generator: torch.Generator) -> None:
    """The picture's parts differ, so the statistics of its bands are not its own."""
    ramp = torch.linspace(0, 0.5, 1500)[:, None]
    image = ramp + 0.3 * torch.rand(1, 3, 1500, 700, generator=generator)
    reference = 0.2 + 0.4 * torch.rand(1, 3, 1500, 700, generator=generator)
    result = adain_fix(image, reference)
    for statistic in (torch.mean, torch.std):
        expected = statistic(reference, dim=(2, 3))
        torch.testing.assert_close(statistic(result, dim=(2, 3)), expected, rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("channels_last", [False, True])
def test_result_in_place(fix: Fix, channels_last: bool, generator: torch.Generator) -> None:
    image, reference = (torch.rand(2, 3, 1100, 500, generator=generator) for _ in range(2))
    expected = fix(image, reference)
    if channels_last:  # as ComfyUI's images are
        image = image.movedim(1, -1).contiguous().movedim(-1, 1)
    assert fix(image, reference, out=image) is image
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


def peak_memory(action: Callable[[], object]) -> int:
    """Bytes that an action has allocated at most, what it returns included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as run:
        action()
    trace = run.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(trace, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("fix", [wavelet_fix, adain_fix, to_grey])
def test_memory_does_not_grow_with_the_height(fix: Callable[..., Tensor]) -> None:
    def run(height: int) -> int:
        images = torch.zeros(1 if fix is to_grey else 2, 1, 3, height, 512)
        return peak_memory(lambda: fix(*images, out=images[0]))

    low, high = run(2048), run(6144)
    assert low > 0
    assert high < 1.01 * low


def test_grey_is_told_from_colour(generator: torch.Generator) -> None:
    grey = torch.rand(3, 1, 600, 500, generator=generator).repeat(1, 3, 1, 1)
    grey[1, 0] += 0.9 / 512
    grey[2, 2, 599, 499] += 1.1 / 512
    assert is_grey(grey) == [True, True, False]


def test_grey_is_the_luma(generator: torch.Generator) -> None:
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1.0]]).T.reshape(1, 3, 2, 2)
    grey = torch.tensor([0.299, 0.587, 0.114, 1]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    torch.testing.assert_close(to_grey(colours), grey)
    image = torch.rand(2, 3, 600, 500, generator=generator)
    expected = to_grey(image)
    assert is_grey(expected) == [True, True]
    assert to_grey(image, out=image) is image
    assert torch.equal(image, expected)
    assert expected.max() <= 1


@pytest.mark.parametrize("out", [torch.zeros(1, 3, 8, 9), torch.zeros(1, 3, 8, 8).half()])
def test_an_unfit_place_for_the_result_is_named(out: Tensor) -> None:
    image = torch.zeros(1, 3, 8, 8)
    for run in (
        lambda: wavelet_fix(image, image, out=out),
        lambda: adain_fix(image, image, out=out),
        lambda: to_grey(image, out=out),
    ):
        with pytest.raises(PFStorerError, match="The result's tensor is"):
            run()


@pytest.mark.parametrize("call", [is_grey, to_grey])
def test_grey_needs_rgb(call: Callable[[Tensor], object]) -> None:
    with pytest.raises(PFStorerError, match=r"The image has the shape \(1, 1, 8, 8\)"):
        call(torch.zeros(1, 1, 8, 8))
