"""The node that makes low-quality pictures, to measure restorations on."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..pfstorer_core.degradation.exact import ExactDegradation, blur_in_pixels, degrade_exactly
from ..pfstorer_core.degradation.presets import PRESETS
from ..pfstorer_core.degradation.second_order import degrade_to_size
from ..pfstorer_core.host.feedback import show_text
from ..pfstorer_core.host.images import split_alpha
from ..pfstorer_core.pictures.resizing import resize_bicubic
from .progress import progress_bar

EXPLICIT = "explicit"
MAX_SEED = 2**63 - 1


class Degrade(io.ComfyNode):
    """Makes low-quality pictures of good ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerDegrade",
            display_name="Degrade Image",
            category="PFStorer",
            description=(
                "Spoils good pictures as those of the training are spoilt (blur, small size, "
                "noise, JPEG), so that a restoration can be measured against the original."
            ),
            search_aliases=["low quality", "blur", "noise", "JPEG", "downscale", "test image"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("image", tooltip="Good pictures; an alpha channel is left out."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip=(
                        "Seed of the first picture; each further one has the next seed, and is the "
                        "same as alone with it."
                    ),
                ),
                io.Boolean.Input(
                    "keep_size",
                    default=True,
                    tooltip=(
                        "Scale the result back to the input's size; else it is as small as the "
                        "degradation made it, and pictures of different sizes come as a list."
                    ),
                ),
                io.Int.Input(
                    "person_size",
                    default=0,
                    min=0,
                    max=16384,
                    advanced=True,
                    tooltip=(
                        "Blur follows the picture's size. For a person who is a small part of it: "
                        "side in pixels of the square that a portrait would take; 0 is the picture."
                    ),
                ),
                io.DynamicCombo.Input(
                    "degradation",
                    options=[
                        *(io.DynamicCombo.Option(name, []) for name in ("medium", *_others())),
                        io.DynamicCombo.Option(EXPLICIT, _explicit_inputs()),
                    ],
                    tooltip=(
                        "How bad: a preset draws blur, size, noise and JPEG from its ranges, "
                        "'face' from mild to heavy; 'explicit' takes your values."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(is_output_list=True, tooltip="The spoilt pictures."),
                io.String.Output(display_name="report", tooltip="What was applied."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        seed: int,
        keep_size: bool,
        person_size: int,
        degradation: dict[str, Any],
    ) -> io.NodeOutput:
        """Degrades each picture on its own."""
        values = dict(degradation)
        preset = values.pop("degradation")
        pictures, alpha = split_alpha(image)  # (B, 3, H, W)
        height, width = pictures.shape[-2:]
        seeds = [(seed + k) % (MAX_SEED + 1) for k in range(len(pictures))]
        spoilt: list[Tensor] = []
        progress = progress_bar(cls.hidden.unique_id)
        if preset == EXPLICIT:
            exact = ExactDegradation(**values)
            for picture, number in zip(pictures, seeds, strict=True):
                generator = torch.Generator().manual_seed(number)
                spoilt.append(degrade_exactly(picture[None], exact, generator, person_size)[0])
                progress(len(spoilt), len(pictures))
            blur = (exact.blur, exact.blur)
        else:
            config = PRESETS[preset]
            # `degrade_to_size` blurs in proportion to the picture, of which a person is a part.
            share = blur_in_pixels(1.0, height, width, person_size) / blur_in_pixels(
                1.0, height, width
            )
            for picture, number in zip(pictures, seeds, strict=True):
                generator = torch.Generator().manual_seed(number)
                spoilt += degrade_to_size(picture[None], config.with_blur(share), generator)
                progress(len(spoilt), len(pictures))
            blur = config.first.blur_sigma
        lines = [_applied(preset, values, seed)]
        lines.append(_blur_line(blur, height, width, person_size))
        lines += _size_lines([p.shape[-2:] for p in spoilt], (height, width), keep_size)
        if alpha is not None:
            lines.append("The alpha channel is left out.")
        text = "\n".join(lines)
        show_text(str(cls.hidden.unique_id), text)
        if keep_size:
            spoilt = [resize_bicubic(p[None], (height, width))[0] for p in spoilt]
        shown = [p.movedim(0, -1) for p in spoilt]  # (h, w, 3)
        if len({p.shape for p in shown}) == 1:
            return io.NodeOutput([torch.stack(shown)], text)
        return io.NodeOutput([p[None].contiguous() for p in shown], text)


def _others() -> list[str]:
    # The first option is what the frontend chooses.
    return [name for name in PRESETS if name != "medium"]


def _explicit_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "blur",
            default=4.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=(
                "Sigma of the Gaussian blur in pixels of a 512-pixel picture: one of 128 pixels "
                "gets a quarter. 0: none."
            ),
        ),
        io.Float.Input(
            "downsample",
            default=4.0,
            min=1.0,
            max=64.0,
            step=0.1,
            tooltip="How many times smaller the low-quality picture is; 1: no loss of size.",
        ),
        io.Float.Input(
            "noise",
            default=8.0,
            min=0.0,
            max=255.0,
            step=0.5,
            tooltip="Standard deviation of the noise in grey levels of 255. 0: none.",
        ),
        io.Int.Input(
            "jpeg_quality",
            default=60,
            min=0,
            max=100,
            tooltip="Quality of the JPEG that the small picture is saved as; 0: none.",
        ),
    ]


def _applied(preset: str, values: dict[str, Any], seed: int) -> str:
    if preset != EXPLICIT:
        return f"Degradation '{preset}', seed {seed}"
    quality = values["jpeg_quality"]
    saved = f"JPEG quality {quality}" if quality else "no JPEG"
    return (
        f"Blur {values['blur']:g} px of 512, {values['downsample']:g} times smaller, noise "
        f"{values['noise']:g} of 255, {saved}, seed {seed}"
    )


def _blur_line(blur: tuple[float, float], height: int, width: int, person_size: int) -> str:
    low, high = (f"{blur_in_pixels(b, height, width, person_size):.3g}" for b in blur)
    drawn = f" from {low} to {high} px, drawn" if low != high else f" {low} px"
    return f"Sigma of the blur in a picture of {width} x {height}:{drawn}"


def _size_lines(spoilt: list[torch.Size], size: tuple[int, int], keep_size: bool) -> list[str]:
    height, width = size
    back = ", scaled back" if keep_size else ""
    sizes = [f"{width} x {height} to {w} x {h} px{back}" for h, w in spoilt]
    if len(set(sizes)) == 1:
        return [sizes[0]]
    return [f"Picture {k}: {line}" for k, line in enumerate(sizes, 1)]
