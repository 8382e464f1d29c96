"""Nodes that measure restorations, and make pictures to measure them on."""

from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..pfstorer_core.degradation.exact import ExactDegradation, blur_in_pixels, degrade_exactly
from ..pfstorer_core.degradation.presets import PRESETS
from ..pfstorer_core.degradation.second_order import degrade_to_size
from ..pfstorer_core.errors import PFStorerError
from ..pfstorer_core.host.feedback import show_text
from ..pfstorer_core.host.images import split_alpha
from ..pfstorer_core.host.load.folders import file_state
from ..pfstorer_core.host.measure.judge import (
    AUTOMATIC,
    FACES,
    choose_judge,
    chosen_file,
    embedding_choices,
)
from ..pfstorer_core.measures.comparison import Progress, compare
from ..pfstorer_core.measures.figures import LPIPS, PSNR, SIMILARITY, SSIM
from ..pfstorer_core.measures.sheet import panels, sheet, sheet_notes
from ..pfstorer_core.pictures.resizing import resize_bicubic

EXPLICIT = "explicit"
MAX_SEED = 2**63 - 1


class Compare(io.ComfyNode):
    """Measures restored pictures and shows them beside what they are compared with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs, with the embeddings that are there now."""
        return io.Schema(
            node_id="PFStorerCompare",
            display_name="Compare Restorations",
            category="PFStorer",
            description=(
                "Measures restored pictures against the original picture, against photos of the "
                "person, or both, and draws LQ, base, personalized and truth side by side."
            ),
            search_aliases=["PSNR", "SSIM", "LPIPS", "identity similarity", "ArcFace", "evaluate"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("restored", tooltip="Pictures to measure; a batch or a list."),
                io.Image.Input(
                    "truth",
                    optional=True,
                    tooltip=(
                        "The original picture of each, or one for all. It decides the size; the "
                        "others are scaled to it."
                    ),
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip=(
                        "Photos of the person, two or more, for the identity similarity: a batch, "
                        "or a list of different sizes. Others than those that were trained on "
                        "judge more fairly."
                    ),
                ),
                io.Image.Input(
                    "lq", optional=True, tooltip="Low-quality input of each, or one for all."
                ),
                io.Image.Input(
                    "base",
                    optional=True,
                    tooltip="What the restorer gives without the adapter, for each, or one.",
                ),
                io.Combo.Input(
                    "embedding",
                    options=embedding_choices(),
                    default=AUTOMATIC,
                    tooltip=(
                        "What tells persons apart: an ArcFace network in "
                        "models/pfstorer_embeddings for real faces (automatic: the first there), "
                        "or the bundled one for drawn portraits of the demo nodes only."
                    ),
                ),
                io.Combo.Input(
                    "faces",
                    options=list(FACES),
                    default=FACES[0],
                    advanced=True,
                    tooltip=(
                        "How an ArcFace network sees faces: found by ComfyUI's MediaPipe nodes and "
                        "cut out, or whole pictures that are crops of one upright face already."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="picture",
                    tooltip="LQ, base, personalized and truth side by side, with figures.",
                ),
                io.Image.Output(
                    display_name="panels",
                    tooltip=(
                        "The same pictures one by one in that order; connect them to both inputs "
                        "of Compare Images to choose any two for its slider."
                    ),
                ),
                io.Float.Output(display_name="psnr", tooltip="Mean PSNR in dB; NaN without truth."),
                io.Float.Output(display_name="ssim", tooltip="Mean SSIM; NaN without truth."),
                io.Float.Output(
                    display_name="lpips",
                    tooltip="Mean LPIPS, lower is better; NaN without truth or its weights.",
                ),
                io.Float.Output(
                    display_name="similarity",
                    tooltip=(
                        "Mean cosine of the person to the references, up to 1; NaN without "
                        "references or embedding."
                    ),
                ),
                io.Float.Output(
                    display_name="baseline",
                    tooltip=(
                        "Mean cosine of the references to each other: what a photo of the person "
                        "reaches; NaN of fewer than two."
                    ),
                ),
                io.String.Output(
                    display_name="report", tooltip="Table of all figures, as Markdown."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, embedding: Any, **others: Any) -> Any:
        """Returns name, time and size of the embedding's file, so that a changed one is loaded."""
        path = chosen_file(embedding[0])
        return None if path is None else file_state(path)

    @classmethod
    def execute(
        cls,
        restored: list[Tensor],
        embedding: list[str],
        faces: list[str],
        truth: list[Tensor] | None = None,
        references: list[Tensor] | None = None,
        lq: list[Tensor] | None = None,
        base: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        """Measures the pictures; inputs are lists so that references may differ in size."""
        for name, values in (("embedding", embedding), ("faces", faces)):
            if len(set(values)) > 1:
                raise PFStorerError(
                    f"{name} is a list of {len(values)}; all pictures are compared in one way, so "
                    "give one."
                )
        judge = choose_judge(embedding[0], faces[0])
        comparison = compare(
            _pictures(restored),
            truth=_pictures(truth),
            references=_pictures(references),
            lq=_pictures(lq),
            base=_pictures(base),
            embedding=judge.embedding,
            find_faces=judge.find_faces,
            progress=_progress(cls.hidden.unique_id),
        )
        # First, because the node shows the first notes.
        comparison.notes[:0] = [*sheet_notes(comparison), *(judge.notes if references else ())]
        show_text(str(cls.hidden.unique_id), "\n".join(comparison.lines()))
        picture = sheet(comparison).movedim(0, -1)[None]  # (1, H, W, 3)
        return io.NodeOutput(
            picture,
            panels(comparison).movedim(1, -1).contiguous(),  # (B * kinds, H, W, 3)
            comparison.mean(PSNR),
            comparison.mean(SSIM),
            comparison.mean(LPIPS),
            comparison.mean(SIMILARITY),
            comparison.baseline,
            comparison.report(),
            ui=ui.PreviewImage(picture, cls=cls),
        )


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
        progress = _progress(cls.hidden.unique_id)
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


def _progress(node_id: Any) -> Progress:
    """Returns what shows steps as the node's bar, and ends it where the user stops the prompt."""
    bar = comfy.utils.ProgressBar(1, node_id=node_id)

    def shown(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return shown


def _pictures(images: list[Tensor] | None) -> list[Tensor]:
    """Returns the pictures (3, H, W) of a list of IMAGEs."""
    return [picture for image in images or () for picture in split_alpha(image)[0]]


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
