"""Image quality measures, one value per image."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import PFStorerError
from ..pictures.values import unit_range

SSIM_WINDOW = 11  # px
SSIM_PIXELS = 2**18  # of all pictures, computed at once
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet_Weights.IMAGENET1K_V1


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, higher is better, inf for equal images.

    Args:
        images: (B, 3, H, W) in [0, 1].
        targets: the same shape and range.

    Returns:
        (B,)

    Raises:
        PFStorerError: when shapes differ or values lie far outside [0, 1].
    """
    images, targets = _checked(images, targets, 1)
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(images, targets, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Return the structural similarity (Gaussian window, sigma 1.5 px), 1 for equal images.

    Args, Returns, Raises: as `psnr`; the images are at least 11 px wide and high.

    Source: Wang et al. 2004, Image quality assessment: from error visibility to structural
    similarity.
    """
    images, targets = _checked(images, targets, SSIM_WINDOW)
    from torchmetrics.functional.image import structural_similarity_index_measure

    # In strips, because a whole picture takes most of a kilobyte of memory per pixel. A row needs
    # those that its windows reach.
    height, width = images.shape[-2:]
    reach = SSIM_WINDOW // 2
    rows = max(SSIM_WINDOW, SSIM_PIXELS // (width * len(images)))
    total = torch.zeros(len(images), dtype=torch.float64)  # which not every device has
    for top in range(0, height, rows):
        start = max(0, top - reach)
        part = slice(start, top + rows + reach)
        _, values = structural_similarity_index_measure(
            images[:, :, part],
            targets[:, :, part],
            data_range=1.0,
            reduction="none",
            return_full_image=True,
        )  # (B, 3, rows and what the windows reach, W)
        own = values[:, :, top - start : top - start + rows]
        total += own.sum(dim=3).cpu().double().sum(dim=(1, 2))
    return (total / images[0].numel()).to(images.device, torch.float32)


def haarpsi(images: Tensor, targets: Tensor) -> Tensor:
    """Return the Haar wavelet perceptual similarity in [0, 1], 1 for equal images.

    It needs no trained weights, so that its figures can be reproduced anywhere.

    Args, Returns, Raises: as `psnr`; the images are at least 16 px wide and high.

    Source: Reisenhofer et al. 2018 (arXiv 1607.06140).
    """
    images, targets = _checked(images, targets, 16)
    import piq

    return piq.haarpsi(images, targets, data_range=1.0, reduction="none")


def gmsd(images: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient magnitude similarity deviation, 0 for equal images, lower is better.

    It needs no trained weights.

    Args, Returns, Raises: as `psnr`; the images are at least 11 px wide and high.

    Source: Xue et al. 2014 (arXiv 1308.3052).
    """
    images, targets = _checked(images, targets, 11)
    import piq

    return piq.gmsd(images, targets, data_range=1.0, reduction="none")


def lpips_available() -> bool:
    """Return whether the AlexNet weights that LPIPS needs lie in torch hub's folder."""
    return _lpips_weights().is_file()


def lpips(images: Tensor, targets: Tensor) -> Tensor:
    """Return the learned perceptual distance (AlexNet), 0 for equal images, lower is better.

    Nothing is ever downloaded: see `lpips_available`.

    Args, Returns: as `psnr`; the images are at least 32 px wide and high.

    Raises:
        PFStorerError: as `psnr`, and when the weights are not on this machine.

    Source: Zhang et al. 2018 (arXiv 1801.03924), version 0.1.
    """
    images, targets = _checked(images, targets, 32)
    if not lpips_available():
        raise PFStorerError(
            f"LPIPS needs torchvision's AlexNet weights at {_lpips_weights()}, which is missing; "
            "put the file there or use HaarPSI, which needs none."
        )
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    with torch.no_grad():
        return learned_perceptual_image_patch_similarity(
            images, targets, net_type="alex", reduction="none", normalize=True
        ).reshape(-1)


def _lpips_weights() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS


def _checked(images: Tensor, targets: Tensor, smallest: int) -> tuple[Tensor, Tensor]:
    """Return both batches as float32 clamped to [0, 1], or say what is wrong with them."""
    if images.shape != targets.shape:
        raise PFStorerError(
            f"Images of shape {tuple(images.shape)} cannot be measured against "
            f"{tuple(targets.shape)}; resize one to the other's size."
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] < 1:
        raise PFStorerError(
            f"Images to measure have the shape {tuple(images.shape)}; give (B, 3, H, W)."
        )
    if min(images.shape[-2:]) < smallest:
        raise PFStorerError(
            f"Images to measure are {images.shape[-1]} x {images.shape[-2]} px; this measure "
            f"needs at least {smallest} px on each side."
        )
    checked = []
    for batch in (images, targets):
        checked.append(unit_range(batch, "A picture to measure").float())
    return checked[0], checked[1]
