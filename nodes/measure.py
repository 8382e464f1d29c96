"""The node that measures restorations."""

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..pfstorer_core.errors import PFStorerError
from ..pfstorer_core.host.feedback import show_text
from ..pfstorer_core.host.images import split_alpha
from ..pfstorer_core.host.measure.judge import (
    AUTOMATIC,
    FACES,
    choose_judge,
    embedding_choices,
    embedding_state,
)
from ..pfstorer_core.measures.comparison import compare
from ..pfstorer_core.measures.figures import LPIPS, PSNR, SIMILARITY, SSIM
from ..pfstorer_core.measures.sheet import panels, sheet, sheet_notes
from .progress import progress_bar


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
        return embedding_state(embedding[0])

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
            progress=progress_bar(cls.hidden.unique_id),
        )
        missing = judge.missing if references else ""
        without = [f"The identity similarity is left out: {missing}"] if missing else []
        # First, because the node shows the first notes.
        comparison.notes[:0] = [*sheet_notes(comparison), *without]
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


def _pictures(images: list[Tensor] | None) -> list[Tensor]:
    """Returns the pictures (3, H, W) of a list of IMAGEs."""
    return [picture for image in images or () for picture in split_alpha(image)[0]]
