from collections.abc import Callable

import pytest
import torch
from golden_weights import TOLERANCE, Goldens, relative_l2
from torch import Tensor

from pfstorer_core.color import adain_fix, wavelet_fix
from pfstorer_core.errors import PFStorerError

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
    assert relative_l2(result, fix(image, reference)) < 2e-3


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
