"""The node that finds the people of a picture."""

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..pfstorer_core.host.images import split_alpha
from ..pfstorer_core.host.people.finders import AUTOMATIC, DETECTORS, GivenHeads, find_people
from ..pfstorer_core.people.people import FoundPeople
from ..pfstorer_core.people.preview import numbered_previews

People = io.Custom("PFSTORER_PEOPLE")
# Types of ComfyUI and of Impact Pack, by name: older versions of ComfyUI lack their classes.
Boxes = io.Custom("BOUNDING_BOX")
Segs = io.Custom("SEGS")


class FindPeople(io.ComfyNode):
    """Finds the heads of all people in a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerFindPeople",
            display_name="Find People",
            category="PFStorer",
            description=(
                "Finds the head of each person in a picture, with hair, and numbers them. Nothing "
                "is downloaded."
            ),
            search_aliases=["face detection", "detect heads", "segment faces", "group photo"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="Pictures of people; a batch works."),
                io.Combo.Input(
                    "detector",
                    options=list(DETECTORS),
                    default=AUTOMATIC,
                    display_name="found by",
                    tooltip=(
                        "What finds the heads: the bundled detector, ComfyUI's MediaPipe nodes if "
                        "their model lies in models/detection, or both (automatic)."
                    ),
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip=(
                        "Heads that you painted or another node found, in place of the detector: "
                        "one mask for each head, or one mask with all heads painted apart."
                    ),
                ),
                Boxes.Input(
                    "boxes",
                    optional=True,
                    tooltip=(
                        "Boxes that another node found, in place of the detector. Around those "
                        "labelled 'face' hair is added."
                    ),
                ),
                Segs.Input(
                    "segs",
                    optional=True,
                    tooltip=(
                        "SEGS of Impact Pack and the like, in place of the detector. Around those "
                        "labelled 'face' hair is added."
                    ),
                ),
            ],
            outputs=[
                People.Output(
                    display_name="people", tooltip="For Match People and Restore People."
                ),
                io.Mask.Output(display_name="masks", tooltip="One soft mask for each head."),
                Boxes.Output(display_name="boxes", tooltip="The box around each head."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The picture with each head outlined and numbered.",
                ),
                io.String.Output(
                    display_name="report", tooltip="How many people were found, by what."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        detector: str,
        masks: Tensor | None = None,
        boxes: Any = None,
        segs: Any = None,
    ) -> io.NodeOutput:
        """Finds the people."""
        people = find_people(image, detector, GivenHeads(masks, boxes, segs))
        preview = preview_of(image, people, [str(number) for number, *_ in people.numbered()])
        lines = people.lines()
        return io.NodeOutput(
            people,
            people.masks(),
            people.boxes(),
            preview,
            "\n".join(lines),
            ui=ui.PreviewImage(preview, cls=cls),
        )


def preview_of(image: Tensor, people: FoundPeople, labels: list[str]) -> Tensor:
    """Returns the numbered pictures as an IMAGE."""
    rgb, _ = split_alpha(image)
    return numbered_previews(rgb, people, labels).movedim(1, -1).contiguous()
