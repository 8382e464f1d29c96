"""Second-order synthetic degradation: sharp pictures to low-quality (LQ) ones."""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import PFStorerError
from .kernels import KERNEL_SHAPES, blur_kernel, filter_image, sinc_kernel
from .ranges import (
    Range,
    check_probability,
    check_range,
    check_weights,
    draw_chance,
    draw_choice,
    draw_uniform,
    lists_to_tuples,
)
from .values import unit_range

REFERENCE_SIZE = 512  # px: blur sigmas are given for a picture of this size
RESIZE_MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class StageConfig:
    """Ranges of one stage: blur, resize, noise, JPEG.

    Blur is in px of a 512-px picture and scales with the picture: one of 128 px gets a quarter.
    Noise, JPEG and the sinc cut-off belong to the pixel grid and do not scale.

    Args:
        blur_sigma: Gaussian sigma, px at 512 px; an anisotropic kernel draws two.
        kernel_weights: odds of a Gaussian, generalised Gaussian or plateau kernel.
        anisotropic_probability: chance that a kernel has two sigmas and an angle.
        generalised_beta: exponent of exp(-0.5 (r^2)^beta).
        plateau_beta: exponent of 1 / (1 + (r^2)^beta).
        sinc_probability: chance of a sinc (ringing) kernel in place of the blur.
        sinc_cutoff: share of the Nyquist frequency.
        resize_weights: odds of up, down, keep.
        upscale: factor when resizing up, at least 1.
        down_share: how far a resize down goes to the LQ size; 0 stays, 1 arrives (log scale).
        noise_sigma: standard deviation in grey levels of 255; Poisson noise has it at white.
        poisson_probability: chance of Poisson in place of Gaussian noise.
        grey_noise_probability: chance that all channels share one noise.
        jpeg_quality: JPEG quality, 1 to 100.

    Raises:
        PFStorerError: when a range, probability or weight makes no sense.
    """

    blur_sigma: Range = (0.1, 10.0)
    kernel_weights: tuple[float, float, float] = (0.7, 0.15, 0.15)
    anisotropic_probability: float = 0.35
    generalised_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    sinc_probability: float = 0.1
    sinc_cutoff: Range = (0.5, 1.0)
    resize_weights: tuple[float, float, float] = (0.2, 0.7, 0.1)
    upscale: Range = (1.0, 1.5)
    down_share: Range = (0.3, 1.0)
    noise_sigma: Range = (0.0, 15.0)
    poisson_probability: float = 0.4
    grey_noise_probability: float = 0.4
    jpeg_quality: Range = (60.0, 100.0)

    def __post_init__(self) -> None:
        check_range("blur_sigma", self.blur_sigma, 0.0)
        check_range("generalised_beta", self.generalised_beta, 0.01)
        check_range("plateau_beta", self.plateau_beta, 0.01)
        check_range("sinc_cutoff", self.sinc_cutoff, 0.01, 1.0)
        check_range("upscale", self.upscale, 1.0, 8.0)
        check_range("down_share", self.down_share, 0.0, 1.0)
        check_range("noise_sigma", self.noise_sigma, 0.0, 255.0)
        check_range("jpeg_quality", self.jpeg_quality, 1.0, 100.0)
        check_weights("kernel_weights", self.kernel_weights, len(KERNEL_SHAPES))
        check_weights("resize_weights", self.resize_weights, 3)
        for name in (
            "anisotropic_probability",
            "sinc_probability",
            "poisson_probability",
            "grey_noise_probability",
        ):
            check_probability(name, getattr(self, name))


@dataclass(frozen=True)
class DegradationConfig:
    """One or two stages and the size of the LQ picture.

    Args:
        first: the first stage.
        second: the second stage.
        second_order_probability: chance that the second stage takes place.
        downsample: total factor between the sharp and the LQ picture (log-uniform). Stages never
            go below the LQ size, so this alone bounds the loss of size; below 1 enlarges.
        final_sinc_probability: chance of a sinc kernel at the LQ size, before or after the JPEG.

    Raises:
        PFStorerError: when a range or probability makes no sense.
    """

    first: StageConfig = StageConfig()
    second: StageConfig = StageConfig()
    second_order_probability: float = 1.0
    downsample: Range = (1.0, 4.0)
    final_sinc_probability: float = 0.5

    def __post_init__(self) -> None:
        check_range("downsample", self.downsample, 0.25, 64.0)
        check_probability("second_order_probability", self.second_order_probability)
        check_probability("final_sinc_probability", self.final_sinc_probability)

    def with_blur(self, factor: float) -> DegradationConfig:
        """Return the settings with all blur sigmas times the factor.

        Blur follows the size of the whole picture; this fits it to a person who is a part of it.
        """
        first, second = (
            dataclasses.replace(
                stage, blur_sigma=(stage.blur_sigma[0] * factor, stage.blur_sigma[1] * factor)
            )
            for stage in (self.first, self.second)
        )
        return dataclasses.replace(self, first=first, second=second)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that JSON keeps."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DegradationConfig:
        """Return the settings that `to_dict` wrote.

        Raises:
            PFStorerError: for an unknown name or a value out of its range.
        """
        try:
            values = dict(values)
            for stage in ("first", "second"):
                if stage in values:
                    values[stage] = StageConfig(**lists_to_tuples(values[stage]))
            return cls(**lists_to_tuples(values))
        except (TypeError, AttributeError) as error:
            raise PFStorerError(
                f"These degradation settings cannot be read ({error}); use the names that "
                "DegradationConfig.to_dict writes."
            ) from error


PRESETS: dict[str, DegradationConfig] = {
    # A good but small or recompressed photo.
    "light": DegradationConfig(
        first=StageConfig(blur_sigma=(0.1, 3.0), noise_sigma=(0.0, 5.0), jpeg_quality=(75.0, 98.0)),
        second=StageConfig(
            blur_sigma=(0.1, 1.5), noise_sigma=(0.0, 3.0), jpeg_quality=(80.0, 98.0)
        ),
        second_order_probability=0.3,
        downsample=(1.0, 2.0),
        final_sinc_probability=0.2,
    ),
    # A thumbnail or a frame of an old video.
    "medium": DegradationConfig(
        first=StageConfig(
            blur_sigma=(0.5, 6.0), noise_sigma=(1.0, 12.0), jpeg_quality=(50.0, 90.0)
        ),
        second=StageConfig(
            blur_sigma=(0.1, 3.0), noise_sigma=(0.0, 8.0), jpeg_quality=(60.0, 95.0)
        ),
        second_order_probability=0.7,
        downsample=(3.0, 5.0),
        final_sinc_probability=0.4,
    ),
    # A face far away in a noisy, heavily compressed picture: 128 px to about 10.
    "extreme": DegradationConfig(
        first=StageConfig(
            blur_sigma=(1.0, 7.0), noise_sigma=(5.0, 20.0), jpeg_quality=(30.0, 75.0)
        ),
        second=StageConfig(
            blur_sigma=(0.2, 2.0), noise_sigma=(1.0, 8.0), jpeg_quality=(50.0, 90.0)
        ),
        second_order_probability=1.0,
        downsample=(7.0, 12.8),
        final_sinc_probability=0.4,
    ),
    # Face restoration practice (GFPGAN: sigma 0.1-10, 0.8-8x, noise 0-15, JPEG 60-100), from mild
    # to heavy, half of it second order.
    "face": DegradationConfig(
        first=StageConfig(),
        second=StageConfig(blur_sigma=(0.1, 4.0), noise_sigma=(0.0, 10.0)),
        second_order_probability=0.5,
        downsample=(0.8, 12.8),
        final_sinc_probability=0.4,
    ),
}


def degrade(images: Tensor, config: DegradationConfig, generator: torch.Generator) -> Tensor:
    """Return low-quality versions of the images at the images' own size.

    Args:
        images: (B, 3, H, W) in [0, 1].
        config: ranges to draw from, for example `PRESETS["face"]`.
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


def resize_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (B, C, H, W) in [0, 1] resized to (height, width), antialiased and clamped."""
    if images.shape[-2:] == size:
        return images
    # torch resizes no half precision on the CPU.
    return _resize(images.float(), size, "bicubic").to(images.dtype)


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
    image = _resize(image, size, draw_choice(generator, RESIZE_MODES))  # (1, 3, h, w)
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
        image = _resize(
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


def _resize(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    size = (max(1, size[0]), max(1, size[1]))
    if mode == "area":
        return F.interpolate(image, size, mode=mode)
    return F.interpolate(image, size, mode=mode, antialias=True).clamp_(0.0, 1.0)


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


def jpeg(image: Tensor, quality: float) -> Tensor:
    """Return an image (1, 3, H, W) in [0, 1] as it is after it was saved as JPEG."""
    pixels = image[0].mul(255.0).round().to(torch.uint8).permute(1, 2, 0)  # (H, W, 3)
    with io.BytesIO() as file:
        Image.fromarray(pixels.contiguous().numpy()).save(file, "JPEG", quality=round(quality))
        decoded = np.array(Image.open(file).convert("RGB"))
    return torch.from_numpy(decoded).permute(2, 0, 1)[None].float() / 255.0  # (1, 3, H, W)


def checked_pictures(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) as `unit_range` does, or raise PFStorerError."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise PFStorerError(
            f"Pictures to degrade have the shape {tuple(images.shape)}; give (B, 3, H, W)."
        )
    if not images.is_floating_point():
        raise PFStorerError(
            f"Pictures to degrade are of type {images.dtype}; give floats in [0, 1]."
        )
    return unit_range(images.detach(), "A picture to degrade")
