"""Degradations by name, from a good photo to a face far away."""

from __future__ import annotations

from .config import DegradationConfig, StageConfig

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
