"""Nodes that make pictures for trying the others out."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ..pfstorer_core.degradation.presets import PRESETS
from ..pfstorer_core.drawn.groups import album_page, degrade_people, group_photo
from ..pfstorer_core.drawn.portraits import portrait_set

CLEAN = "none"
NOBODY = -1


class DemoPortrait(io.ComfyNode):
    """Renders portraits of people who do not exist."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerDemoPortrait",
            display_name="Demo Portrait",
            category="PFStorer",
            description=(
                "Renders drawn portraits of a person who does not exist, sharp or degraded, so "
                "that workflows can be tried without any photo. One identity keeps its moles, "
                "eyes and hair in every view."
            ),
            search_aliases=["test image", "example face", "synthetic portrait", "degrade"],
            inputs=[
                io.Int.Input(
                    "identity",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Number of the person; each is someone else.",
                ),
                io.Int.Input(
                    "views",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many pictures of the person, in other poses and light.",
                ),
                _seed("Seed of poses, light, backgrounds and of the degradation."),
                io.Int.Input(
                    "size",
                    default=128,
                    min=32,
                    max=1024,
                    step=8,
                    tooltip="Width and height in pixels; the mini restorer is made for 128.",
                ),
                _degradation("pictures are", "they keep their"),
            ],
            outputs=[io.Image.Output(tooltip="The portraits.")],
        )

    @classmethod
    def execute(
        cls, identity: int, views: int, seed: int, size: int, degradation: str
    ) -> io.NodeOutput:
        """Renders the portraits."""
        images = portrait_set(identity, views, seed, size)  # (views, 3, size, size)
        return io.NodeOutput(_shown(images, size, degradation, seed))


class DemoGroup(io.ComfyNode):
    """Renders a photo of several people who do not exist, and where each one's head is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerDemoGroup",
            display_name="Demo Group Photo",
            category="PFStorer",
            description=(
                "Renders one drawn picture of up to three people who do not exist, sharp or "
                "degraded, and a mask of each one's head. The identities are those of Demo "
                "Portrait."
            ),
            search_aliases=["test image", "several people", "synthetic group", "face masks"],
            inputs=[
                io.Int.Input(
                    "identity_1",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Number of the person on the left.",
                ),
                io.Int.Input(
                    "identity_2",
                    default=1,
                    min=NOBODY,
                    max=2**31 - 1,
                    tooltip="Number of the next person; -1 is nobody.",
                ),
                io.Int.Input(
                    "identity_3",
                    default=NOBODY,
                    min=NOBODY,
                    max=2**31 - 1,
                    tooltip="Number of the person on the right; -1 is nobody.",
                ),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip="Width in pixels.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip=(
                        "Height in pixels. A face is about two thirds of the height or, in a "
                        "high picture, of a person's share of the width."
                    ),
                ),
                _seed("Seed of places, poses, light, background and of the degradation."),
                _degradation("picture is", "it keeps its"),
            ],
            outputs=[
                io.Image.Output(tooltip="The group photo."),
                *(
                    io.Mask.Output(
                        display_name=f"mask_{k}",
                        tooltip=f"Head and hair of the person of identity_{k}; empty for nobody.",
                    )
                    for k in (1, 2, 3)
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        identity_1: int,
        identity_2: int,
        identity_3: int,
        width: int,
        height: int,
        seed: int,
        degradation: str,
    ) -> io.NodeOutput:
        """Renders the group."""
        identities = (identity_1, identity_2, identity_3)
        present = [k for k, number in enumerate(identities) if number != NOBODY]
        photo = group_photo([identities[k] for k in present], height, width, seed)
        image = _shown(photo.picture, photo.frames[0][2], degradation, seed)
        masks = torch.zeros(len(identities), 1, height, width)
        masks[present] = photo.masks[:, None]  # (people, 1, height, width)
        return io.NodeOutput(image, *masks)


class DemoAlbum(io.ComfyNode):
    """Renders a page with portraits of many people who do not exist."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerDemoAlbum",
            display_name="Demo Album Page",
            category="PFStorer",
            description=(
                "Renders a page of an album with a drawn portrait of another person in each cell, "
                "sharp or degraded: a large picture with many small faces, for trying tiles out."
            ),
            search_aliases=["test image", "many people", "contact sheet", "large picture"],
            inputs=[
                io.Int.Input(
                    "identity",
                    default=0,
                    min=0,
                    max=2**31 - 4097,
                    tooltip="Number of the first person; the others follow, row by row.",
                ),
                io.Int.Input("columns", default=8, min=1, max=64, tooltip="Portraits in a row."),
                io.Int.Input("rows", default=4, min=1, max=64, tooltip="Rows of portraits."),
                io.Int.Input(
                    "size",
                    default=128,
                    min=32,
                    max=1024,
                    step=8,
                    tooltip="Width and height of a portrait in pixels; an eighth lies between two.",
                ),
                _seed("Seed of poses, light, backgrounds and of the degradation."),
                _degradation("page is", "it keeps its"),
            ],
            outputs=[io.Image.Output(tooltip="The page.")],
        )

    @classmethod
    def execute(
        cls, identity: int, columns: int, rows: int, size: int, seed: int, degradation: str
    ) -> io.NodeOutput:
        """Renders the page."""
        page = album_page(identity, columns, rows, size, seed)  # (1, 3, height, width)
        return io.NodeOutput(_shown(page, size, degradation, seed))


def _seed(tooltip: str) -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**63 - 1,
        control_after_generate=True,
        tooltip=tooltip,
    )


def _degradation(subject: str, keeps: str) -> io.Combo.Input:
    return io.Combo.Input(
        "degradation",
        options=[CLEAN, *PRESETS],
        default=CLEAN,
        tooltip=(
            f"How the {subject} spoilt (blur, noise, small size, JPEG); {keeps} width and height."
        ),
    )


def _shown(pictures: Tensor, frame: int, degradation: str, seed: int) -> Tensor:
    """Returns pictures (B, 3, H, W) as an IMAGE (B, H, W, 3), degraded if that is asked for."""
    if degradation != CLEAN:
        generator = torch.Generator().manual_seed(seed)
        pictures = degrade_people(pictures, frame, PRESETS[degradation], generator)
    return pictures.movedim(1, -1).contiguous()
