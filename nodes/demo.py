"""Nodes that make pictures for trying the others out."""

import torch
from comfy_api.latest import io

from ..pfstorer_core.degradation import PRESETS, degrade
from ..pfstorer_core.portraits import portrait_set

CLEAN = "none"


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
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Seed of poses, light, backgrounds and of the degradation.",
                ),
                io.Int.Input(
                    "size",
                    default=128,
                    min=32,
                    max=1024,
                    step=8,
                    tooltip="Width and height in pixels; the mini restorer is made for 128.",
                ),
                io.Combo.Input(
                    "degradation",
                    options=[CLEAN, *PRESETS],
                    default=CLEAN,
                    tooltip=(
                        "How the pictures are spoilt (blur, noise, small size, JPEG); they keep "
                        "their width and height."
                    ),
                ),
            ],
            outputs=[io.Image.Output(tooltip="The portraits.")],
        )

    @classmethod
    def execute(
        cls, identity: int, views: int, seed: int, size: int, degradation: str
    ) -> io.NodeOutput:
        """Renders the portraits."""
        images = portrait_set(identity, views, seed, size)  # (views, 3, size, size)
        if degradation != CLEAN:
            generator = torch.Generator().manual_seed(seed)
            images = degrade(images, PRESETS[degradation], generator)
        return io.NodeOutput(images.movedim(1, -1).contiguous())
