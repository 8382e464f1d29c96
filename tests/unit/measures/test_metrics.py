from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
import torchvision
from scipy import ndimage

from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures import metrics

MEASURES = [metrics.psnr, metrics.ssim, metrics.haarpsi, metrics.gmsd]
PERFECT = {"psnr": float("inf"), "ssim": 1.0, "haarpsi": 1.0, "gmsd": 0.0}


def pictures(count: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    """Soft random pictures (count, 3, H, W) in [0, 1] with edges."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    soft = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    soft[..., height // 3 :, width // 2 :] += 0.3
    return soft.clamp(0.0, 1.0)


def noisy(images: torch.Tensor, sigma: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0.0, 1.0)


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_images_score_perfectly(measure) -> None:
    images = pictures()
    expected = torch.full((3,), PERFECT[measure.__name__])
    assert torch.allclose(measure(images, images), expected, atol=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_image_has_its_own_value(measure) -> None:
    targets = pictures()
    images = torch.cat([noisy(targets[i : i + 1], s) for i, s in enumerate((0.02, 0.1, 0.3))])
    together = measure(images, targets)
    single = [measure(images[i : i + 1], targets[i : i + 1]) for i in range(3)]
    assert together.shape == (3,) and all(s.shape == (1,) for s in single)
    assert torch.allclose(together, torch.cat(single), atol=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_more_noise_scores_worse(measure) -> None:
    targets = pictures(1)
    scores = [float(measure(noisy(targets, s), targets)) for s in (0.02, 0.05, 0.1, 0.2)]
    assert scores == sorted(scores, reverse=measure is not metrics.gmsd)


def test_psnr_of_a_known_error() -> None:
    targets = torch.full((2, 3, 8, 8), 0.5)
    images = targets + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert metrics.psnr(images, targets).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_ssim_by_its_formula() -> None:
    targets = pictures(2, 40, 53)
    images = noisy(targets, 0.1)

    def smooth(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, 1.5, truncate=3.5, mode="mirror", axes=(2, 3))

    x, y = images.numpy().astype(np.float64), targets.numpy().astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    expected = similarity.mean(axis=(1, 2, 3))
    assert metrics.ssim(images, targets).tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def yiq(image: np.ndarray) -> np.ndarray:
    to_yiq = np.array(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    return np.tensordot(to_yiq, image.astype(np.float64), axes=1)


def halved(channels: np.ndarray) -> np.ndarray:
    return channels.reshape(len(channels), channels.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4))


def test_haarpsi_by_its_formula() -> None:
    target = pictures(1)[0]
    image = noisy(target[None], 0.1)[0]
    c, alpha = 30.0, 4.2

    def haar(luma: np.ndarray, scale: int) -> list[np.ndarray]:
        side = 2**scale
        kernel = np.full((side, side), 2.0**-scale)
        kernel[side // 2 :] *= -1
        # origin -1 centres an even kernel as the authors do.
        return [
            np.abs(ndimage.correlate(luma, k, mode="constant", origin=-1))
            for k in (kernel, kernel.T)
        ]

    def sigmoid(v: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-alpha * v))

    def similar(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (2 * a * b + c) / (a**2 + b**2 + c)

    planes = [halved(yiq(p.numpy() * 255.0)) for p in (image, target)]
    coefficients = [[haar(p[0], scale) for scale in (1, 2, 3)] for p in planes]
    total = weights = 0.0
    orientation_weights = []
    for way in range(2):
        local = np.mean(
            [similar(coefficients[0][s][way], coefficients[1][s][way]) for s in (0, 1)], axis=0
        )
        weight = np.maximum(coefficients[0][2][way], coefficients[1][2][way])
        orientation_weights.append(weight)
        total += (sigmoid(local) * weight).sum()
        weights += weight.sum()
    chroma = []
    for channel in (1, 2):
        pair = [
            np.abs(ndimage.uniform_filter(p[channel], 2, mode="constant", origin=-1))
            for p in planes
        ]
        chroma.append(similar(*pair))
    weight = np.mean(orientation_weights, axis=0)
    total += (sigmoid(np.mean(chroma, axis=0)) * weight).sum()
    weights += weight.sum()
    ratio = total / weights
    expected = (np.log(ratio / (1.0 - ratio)) / alpha) ** 2
    got = float(metrics.haarpsi(image[None], target[None]))
    assert got == pytest.approx(expected, abs=1e-4)
    assert 0.2 < got < 0.9


def test_gmsd_by_its_formula() -> None:
    target = pictures(1)[0]
    image = noisy(target[None], 0.1)[0]
    prewitt = np.array([[1.0, 0.0, -1.0]] * 3) / 3.0

    def magnitude(picture: torch.Tensor) -> np.ndarray:
        luma = halved(yiq(picture.numpy()))[0]
        gx, gy = (ndimage.convolve(luma, k, mode="constant") for k in (prewitt, prewitt.T))
        return np.sqrt(gx**2 + gy**2)

    a, b = magnitude(image), magnitude(target)
    t = 170.0 / 255.0**2
    expected = ((2 * a * b + t) / (a**2 + b**2 + t)).std()
    got = float(metrics.gmsd(image[None], target[None]))
    assert got == pytest.approx(expected, rel=1e-3)
    assert got > 0.02


@pytest.mark.parametrize("measure", [*MEASURES, metrics.lpips])
@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 33), "cannot be measured against"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32), "cannot be measured against"),
        (torch.zeros(3, 32, 32), torch.zeros(3, 32, 32), "give \\(B, 3, H, W\\)"),
        (torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32), "give \\(B, 3, H, W\\)"),
        (torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 255.0), "to 255, expected"),
        (torch.full((1, 3, 32, 32), -1.5), torch.zeros(1, 3, 32, 32), "from -1.5"),
        (torch.full((1, 3, 32, 32), torch.nan), torch.zeros(1, 3, 32, 32), "not finite"),
    ],
)
def test_wrong_images_are_refused(measure, images, targets, message: str) -> None:
    with pytest.raises(PFStorerError, match=message):
        measure(images, targets)


def test_ssim_of_a_large_picture_is_that_of_the_whole() -> None:
    """It is computed in strips; the windows between them are not left out."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(1, 3, 800, 500, generator=generator)
    images = targets.clone()
    images[:, :, 600:] *= 0.5  # rows are not alike
    assert images[0, 0].numel() > metrics.SSIM_PIXELS
    whole = torchmetrics.functional.image.structural_similarity_index_measure(
        images, targets, data_range=1.0
    )
    assert float(metrics.ssim(images, targets)) == pytest.approx(float(whole), abs=1e-6)


@pytest.mark.parametrize("measure", [metrics.ssim, metrics.haarpsi, metrics.gmsd])
def test_images_too_small_for_a_measure_are_refused(measure) -> None:
    with pytest.raises(PFStorerError, match="at least"):
        measure(torch.zeros(1, 3, 10, 64), torch.zeros(1, 3, 10, 64))


@pytest.mark.parametrize(
    ("measure", "side"), [(metrics.ssim, 11), (metrics.haarpsi, 16), (metrics.gmsd, 11)]
)
def test_the_smallest_size_works(measure, side: int) -> None:
    images = pictures(2, side, side + 3)
    assert bool(measure(noisy(images, 0.1), images).isfinite().all())


def test_half_precision_is_measured_in_single() -> None:
    images = pictures().half()
    assert metrics.psnr(noisy(images.float(), 0.1), images).dtype == torch.float32


def test_lpips_without_weights_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not metrics.lpips_available()
    with pytest.raises(PFStorerError, match=metrics.LPIPS_WEIGHTS):
        metrics.lpips(pictures(), pictures())
    assert not list(tmp_path.rglob("*"))


def test_lpips_by_its_formula_with_a_random_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    backbone = torchvision.models.alexnet().eval()
    state = {
        # LPIPS does not use the classifier: one value that fills its shape keeps the file small.
        key: torch.zeros(()).expand(value.shape) if key.startswith("classifier") else value
        for key, value in backbone.state_dict().items()
    }
    file = tmp_path / "hub" / "checkpoints" / metrics.LPIPS_WEIGHTS
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    assert metrics.lpips_available()

    targets = pictures()
    images = noisy(targets, 0.2)
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    linear = torch.load(folder / "alex.pth", map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    expected = torch.zeros(3)
    x, y = (((2.0 * p - 1.0) - shift) / scale for p in (images, targets))
    level = 0
    with torch.no_grad():
        for layer in backbone.features:
            x, y = layer(x), layer(y)
            if isinstance(layer, torch.nn.ReLU):
                unit_x, unit_y = (v / v.norm(dim=1, keepdim=True).clamp(min=1e-8) for v in (x, y))
                weight = linear[f"lin{level}.model.1.weight"]
                expected += ((unit_x - unit_y).square() * weight).sum(dim=1).mean(dim=(1, 2))
                level += 1
    assert level == 5
    assert torch.allclose(metrics.lpips(images, targets), expected, rtol=1e-3)
    assert metrics.lpips(targets, targets).abs().max() < 1e-6
    assert metrics.lpips(images[:1], targets[:1]).shape == (1,)
