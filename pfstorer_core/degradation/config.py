"""Settings of the second-order degradation: ranges that each picture draws from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import PFStorerError
from ..ranges import Range, check_probability, check_range, check_weights, lists_to_tuples
from .kernels import KERNEL_SHAPES


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
