import math

import pytest
import torch
from sample_pictures import picture
from scipy import ndimage

from pfstorer_core.degradation.kernels import blur_kernel, filter_image, sinc_kernel
from pfstorer_core.errors import PFStorerError


@pytest.mark.parametrize("shape", ["gaussian", "generalised", "plateau"])
def test_blur_kernels_sum_to_one_and_are_symmetric(shape: str) -> None:
    kernel = blur_kernel(1.3, 4.0, 0.7, shape, 1.4)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(kernel.min()) >= 0.0
    assert torch.allclose(kernel, kernel.flip(0, 1))


def test_blur_kernel_has_the_asked_moments() -> None:
    kernel = blur_kernel(5.0, 2.0, math.radians(30.0))
    radius = kernel.shape[0] // 2
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = axis[:, None], axis[None, :]
    covariance = torch.tensor(
        [
            [float((kernel * x * x).sum()), float((kernel * x * y).sum())],
            [float((kernel * x * y).sum()), float((kernel * y * y).sum())],
        ]
    )
    values, vectors = torch.linalg.eigh(covariance)
    # A cut at 3 sigma takes a few per cent of the variance away.
    assert values.sqrt().tolist() == pytest.approx([2.0, 5.0], rel=0.04)
    angle = math.degrees(math.atan2(float(vectors[1, 1]), float(vectors[0, 1]))) % 180.0
    assert angle == pytest.approx(30.0, abs=0.5)


def test_unknown_kernel_shape_is_refused() -> None:
    with pytest.raises(PFStorerError, match="kernel shape 'box'"):
        blur_kernel(1.0, 1.0, shape="box")


def test_sinc_kernel_passes_low_and_stops_high_frequencies_and_rings() -> None:
    kernel = sinc_kernel(0.5 * math.pi)
    response = torch.fft.fft2(kernel, s=(128, 128)).abs()
    assert float(response[0, 0]) == pytest.approx(1.0, abs=1e-5)
    assert float(response[0, 12]) == pytest.approx(1.0, abs=0.15)  # well below the cut-off
    assert float(response[0, 50]) < 0.1  # well above
    edge = torch.full((1, 3, 64, 64), 0.25)
    edge[..., 32:] = 0.75
    filtered = filter_image(edge, kernel)
    assert float(filtered.max()) > 0.77 and float(filtered.min()) < 0.23


@pytest.mark.parametrize("size", [(128, 128), (37, 53), (1, 40), (5, 1)])
def test_filtering_is_a_convolution_with_replicated_edges(size: tuple[int, int]) -> None:
    image = picture(*size).clamp(0.0, 1.0)
    kernel = blur_kernel(1.0, 2.5, 0.4)
    expected = ndimage.convolve(image.numpy(), kernel[None].numpy(), mode="nearest")
    assert torch.allclose(
        filter_image(image[None], kernel)[0], torch.from_numpy(expected), atol=1e-5
    )
