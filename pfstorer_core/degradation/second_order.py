"""Second-order synthetic degradation: sharp pictures to low-quality (LQ) ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import PFStorerError
from ..pictures.resizing import RESIZE_MODES, resize_bicubic, resize_by
from ..ranges import draw_chance, draw_choice, draw_uniform
from .config import DegradationConfig, StageConfig
from .inputs import REFERENCE_SIZE, checked_pictures
from .jpeg import jpeg
from .kernels import KERNEL_SHAPES, blur_kernel, filter_image, sinc_kernel


def degrade(images: Tensor, config: DegradationConfig, generator: torch.Generator) -> Tensor:
    """Return low-quality versions of the images at the images' own size.

    Args:
        images: (B, 3, H, W) in [0, 1].
        config: ranges to draw from, for example `presets.PRESETS["face"]`.
        generator: CPU generator, the only source of randomness. One seed is taken from it per
            item, so a batch equals its items one by one.

    Returns:
        (B, 3, H, W) in [0, 1]; computed on the CPU, returned on the device of `images`.

    Raises:
        PFStorerError: for a wrong shape, type or range.

    Source: the two-stage model of Real-ESRGAN (arXiv 2107.10833), section 3.
    """
    size = (images.shape[-2], images.shape[-1])
    small = degrade_to_size(images, config, generator)
    upscaled = [resize_bicubic(item[None], size) for item in small]
    return torch.cat(upscaled)


def degrade_to_size(
    images: Tensor,
    config: DegradationConfig,
    generator: torch.Generator,
    size: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Return low-quality versions of the images as small as a user would own them.

    Args:
        images: (B, 3, H, W) in [0, 1].
        config: ranges to draw from.
        generator: CPU generator, as in `degrade`.
        size: (height, width) of every result; without it each item draws `config.downsample`.

    Returns:
        B pictures (3, h, w) in [0, 1], in steps of 1/255.

    Raises:
        PFStorerError: for a wrong shape, type, range or size.
    """
    images = checked_pictures(images)
    if size is not None and min(size) < 1:
        raise PFStorerError(f"The size {size} of the degraded picture must be at least (1, 1).")
    # One seed per item: its result does not depend on how the batch is cut.
    seeds = [
        int(torch.randint(2**31, (), generator=generator, device=generator.device))
        for _ in range(images.shape[0])
    ]
    with torch.no_grad():
        source = images.to("cpu", torch.float32)
        return [
            _degrade_item(item[None], config, torch.Generator().manual_seed(seed), size)[0].to(
                images
            )
            for item, seed in zip(source, seeds, strict=True)
        ]


def _degrade_item(
    image: Tensor,  # (1, 3, H, W)
    config: DegradationConfig,
    generator: torch.Generator,
    size: tuple[int, int] | None,
) -> Tensor:
    height, width = image.shape[-2:]
    scale = math.sqrt(height * width) / REFERENCE_SIZE
    low, high = config.downsample
    factor = math.exp(draw_uniform(generator, (math.log(low), math.log(high))))
    if size is None:
        size = (max(1, round(height / factor)), max(1, round(width / factor)))

    image = _blur_resize_noise(image, config.first, generator, scale, size)
    last = config.first
    if draw_chance(generator, config.second_order_probability):
        image = jpeg(image, draw_uniform(generator, config.first.jpeg_quality))
        image = _blur_resize_noise(image, config.second, generator, scale, size)
        last = config.second

    # A picture is saved before or after it is made small and sharpened.
    quality = draw_uniform(generator, last.jpeg_quality)
    jpeg_first = draw_chance(generator, 0.5)
    sinc = draw_chance(generator, config.final_sinc_probability)
    if jpeg_first:
        image = jpeg(image, quality)
    image = resize_by(image, size, draw_choice(generator, RESIZE_MODES))  # (1, 3, h, w)
    if sinc:
        image = filter_image(
            image, sinc_kernel(math.pi * draw_uniform(generator, last.sinc_cutoff))
        )
    if not jpeg_first:
        image = jpeg(image, quality)
    return image.mul(255.0).round_().div_(255.0)


def _blur_resize_noise(
    image: Tensor,
    stage: StageConfig,
    generator: torch.Generator,
    scale: float,
    lq_size: tuple[int, int],
) -> Tensor:
    if draw_chance(generator, stage.sinc_probability):
        image = filter_image(
            image, sinc_kernel(math.pi * draw_uniform(generator, stage.sinc_cutoff))
        )
    else:
        kernel = _draw_blur_kernel(stage, generator, scale)
        image = image if kernel is None else filter_image(image, kernel)

    way = draw_choice(generator, ("up", "down", "keep"), stage.resize_weights)
    if way != "keep":
        image = resize_by(
            image,
            _stage_size(way, image, stage, generator, lq_size),
            draw_choice(generator, RESIZE_MODES),
        )
    return _add_noise(image, stage, generator)


def _stage_size(
    way: str,
    image: Tensor,
    stage: StageConfig,
    generator: torch.Generator,
    lq_size: tuple[int, int],
) -> tuple[int, int]:
    height, width = image.shape[-2:]
    if way == "up":
        factor = draw_uniform(generator, stage.upscale)
        return round(height * factor), round(width * factor)
    share = draw_uniform(generator, stage.down_share)
    down_h = height * min(1.0, lq_size[0] / height) ** share
    down_w = width * min(1.0, lq_size[1] / width) ** share
    return round(down_h), round(down_w)


def _draw_blur_kernel(
    stage: StageConfig, generator: torch.Generator, scale: float
) -> Tensor | None:
    shape = draw_choice(generator, KERNEL_SHAPES, stage.kernel_weights)
    sigma_x = sigma_y = scale * draw_uniform(generator, stage.blur_sigma)
    angle = 0.0
    if draw_chance(generator, stage.anisotropic_probability):
        sigma_y = scale * draw_uniform(generator, stage.blur_sigma)
        angle = draw_uniform(generator, (0.0, math.pi))
    beta = 1.0
    if shape == "generalised":
        beta = draw_uniform(generator, stage.generalised_beta)
    elif shape == "plateau":
        beta = draw_uniform(generator, stage.plateau_beta)
    if max(sigma_x, sigma_y) < 0.1:  # such a kernel is one pixel
        return None
    return blur_kernel(sigma_x, sigma_y, angle, shape, beta)


def _add_noise(image: Tensor, stage: StageConfig, generator: torch.Generator) -> Tensor:
    sigma = draw_uniform(generator, stage.noise_sigma) / 255.0
    grey = draw_chance(generator, stage.grey_noise_probability)
    poisson = draw_chance(generator, stage.poisson_probability)
    if sigma < 1e-4:
        return image
    if poisson:
        rate = image.mean(dim=1, keepdim=True) if grey else image  # (1, 1 or 3, H, W)
        photons = 1.0 / sigma**2  # at white, so that the deviation there is sigma
        noise = torch.poisson(rate * photons, generator=generator) / photons - rate
    else:
        channels = 1 if grey else image.shape[1]
        noise = sigma * torch.randn((1, channels, *image.shape[-2:]), generator=generator)
    return (image + noise).clamp_(0.0, 1.0)
