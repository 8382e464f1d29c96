"""Nodes that restore images."""

from typing import Any

import comfy.samplers
from comfy_api.latest import io
from torch import Tensor

from ..pfstorer_core.host import condition_on_lq, restore, sampling

MAX_SEED = 0xFFFFFFFFFFFFFFFF
MODEL_TOOLTIP = "MODEL of Load Base Restorer; LoRAs may lie between."
VAE_TOOLTIP = "VAE of Load Base Restorer."


class ConditionOnLQ(io.ComfyNode):
    """Gives a restorer's MODEL the image to restore, for any sampler node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerConditionOnLQ",
            display_name="Condition on LQ Image",
            category="PFStorer",
            description=(
                "Gives a restorer's MODEL the low-quality (LQ) image that it shall restore, for "
                "use with any KSampler. Scale the image to the wanted size first."
            ),
            search_aliases=["StableSR", "low quality", "restore", "LQ latent"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Vae.Input("vae", tooltip=VAE_TOOLTIP),
                io.Image.Input("image", tooltip="Image to restore, already at the output's size."),
            ],
            outputs=[
                io.Model.Output(tooltip="MODEL that restores this image."),
                io.Latent.Output(
                    tooltip="The LQ latent: the sampler's latent image, with denoise 1."
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, vae: Any, image: Tensor) -> io.NodeOutput:
        """Encodes the image."""
        lq_latent = sampling.encode_lq(vae, image)  # (B, C, h, w)
        return io.NodeOutput(condition_on_lq(model, lq_latent), {"samples": lq_latent})


class TiledRestore(io.ComfyNode):
    """Restores images from pixels to pixels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        samplers = comfy.samplers.KSampler
        return io.Schema(
            node_id="PFStorerTiledRestore",
            display_name="Tiled Restore",
            category="PFStorer",
            description=(
                "Restores low-quality images: scales them up, samples with the restorer and gives "
                "the result the colours of the input. This version takes outputs that fit one "
                "tile: 1024 px with Stable Diffusion, 512 px with the mini restorer."
            ),
            search_aliases=["StableSR", "face restore", "super resolution", "upscale", "tile"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Vae.Input("vae", tooltip=VAE_TOOLTIP),
                io.Image.Input("image", tooltip="Images to restore; an alpha channel is kept."),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.1,
                    max=16.0,
                    step=0.1,
                    tooltip="Output size as a multiple of the input size.",
                ),
                io.Int.Input(
                    "longest_side",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Longer side of the output in pixels, in place of scale; 0: use scale.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Seed of the noise; the same seed gives the same result.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps. More add detail, fewer stay closer to the input.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance towards the positive prompt; 1 is none and twice as fast.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=samplers.SAMPLERS,
                    default="euler",
                    tooltip="ComfyUI's sampling algorithm; any works.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=samplers.SCHEDULERS,
                    default="normal",
                    tooltip="How the noise falls over the steps; any works.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the noise schedule that is run; below 1 changes less.",
                ),
                io.Combo.Input(
                    "start",
                    options=list(sampling.STARTS),
                    default=sampling.STARTS[0],
                    advanced=True,
                    tooltip=(
                        "What the sampler starts from: 'LQ image' keeps colours and layout better, "
                        "'noise' is freer."
                    ),
                ),
                io.Combo.Input(
                    "color_fix",
                    options=list(sampling.COLOR_FIXES),
                    default=sampling.COLOR_FIXES[0],
                    tooltip=(
                        "How the output gets the input's colours: 'wavelet' follows local colour, "
                        "'adain' shifts the picture as a whole."
                    ),
                ),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="Prompt; without it, the empty prompt."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Negative prompt, used if cfg is not 1; without it, the empty prompt.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Restored images.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        image: Tensor,
        scale: float,
        longest_side: int,
        **settings: Any,
    ) -> io.NodeOutput:
        """Restores the images."""
        size = sampling.target_size(image, scale, longest_side)
        return io.NodeOutput(restore(model, vae, image, size=size, **settings))
