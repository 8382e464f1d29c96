"""Nodes that restore images."""

from typing import Any

import comfy.samplers
from comfy_api.latest import io
from torch import Tensor

from ..pfstorer_core.host import condition_on_lq, images, restore
from ..pfstorer_core.host.feedback import RestoreReport, show_lines
from ..pfstorer_core.host.patch.chosen_gammas import gamma_report
from ..pfstorer_core.host.restoring.settings import limits_of

MODEL_TOOLTIP = "MODEL of Load Base Restorer; LoRAs may lie between."
VAE_TOOLTIP = "VAE of Load Base Restorer."
MAX_SCALE = 20.0


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
            hidden=[io.Hidden.unique_id],
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
        lq_latent = images.encode_lq(model, vae, image)  # (B, C, h, w)
        conditioned = condition_on_lq(model, lq_latent, image)
        show_lines(cls.hidden.unique_id, gamma_report(conditioned))
        return io.NodeOutput(conditioned, {"samples": lq_latent})


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
                "Restores low-quality images of any size: scales them up, samples with the "
                "restorer tile by tile and gives the result the colours of the input. People of "
                "Apply Personalization are restored within their masks."
            ),
            search_aliases=["StableSR", "face restore", "super resolution", "upscale", "tile"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Vae.Input(
                    "vae", tooltip="VAE of Load Base Restorer, or of Load CFW Decoder for fidelity."
                ),
                io.Image.Input("image", tooltip="Images to restore; an alpha channel is kept."),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.1,
                    max=MAX_SCALE,
                    step=0.1,
                    tooltip="Output size as a multiple of the input size.",
                ),
                io.Int.Input(
                    "longest_side",
                    display_name="longest side",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Longer side of the output in pixels, in place of scale; 0: use scale.",
                ),
                io.Int.Input(
                    "seed",
                    **limits_of("seed"),
                    control_after_generate=True,
                    tooltip="Seed of the noise; the same seed gives the same result.",
                ),
                io.Int.Input(
                    "steps",
                    **limits_of("steps"),
                    advanced=True,
                    tooltip="Sampling steps. More add detail, fewer stay closer to the input.",
                ),
                io.Float.Input(
                    "cfg",
                    **limits_of("cfg"),
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance towards the positive prompt; 1 is none and twice as fast.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    **limits_of("sampler_name"),
                    options=samplers.SAMPLERS,
                    advanced=True,
                    tooltip="ComfyUI's sampling algorithm; any works.",
                ),
                io.Combo.Input(
                    "scheduler",
                    **limits_of("scheduler"),
                    options=samplers.SCHEDULERS,
                    advanced=True,
                    tooltip="How the noise falls over the steps; any works.",
                ),
                io.Float.Input(
                    "denoise",
                    **limits_of("denoise"),
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the noise schedule that is run; below 1 changes less.",
                ),
                io.Combo.Input(
                    "start",
                    **limits_of("start"),
                    advanced=True,
                    tooltip=(
                        "What the sampler starts from: 'LQ image' keeps colours and layout better, "
                        "'noise' is freer."
                    ),
                ),
                io.Combo.Input(
                    "color_fix",
                    **limits_of("color_fix"),
                    advanced=True,
                    tooltip=(
                        "How the output gets the input's colours: 'wavelet' follows local colour, "
                        "'adain' shifts the picture as a whole."
                    ),
                ),
                io.Boolean.Input(
                    "masked_only",
                    display_name="only in masks",
                    **limits_of("masked_only"),
                    optional=True,
                    tooltip=(
                        "Restore only what lies in the masks of Apply Personalization; the rest of "
                        "the picture is scaled and stays as it is."
                    ),
                ),
                io.Combo.Input(
                    "upscaling",
                    **limits_of("upscaling"),
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "'one pass' restores at the output's size. 'progressive' restores at the "
                        "size of faces that the restorer knows first and goes on in steps, 'plain' "
                        "only scales the result from there. 'auto' chooses."
                    ),
                ),
                io.Int.Input(
                    "tile_size",
                    **limits_of("tile_size"),
                    step=8,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Side of a tile in pixels; 0 takes what suits the restorer, or less where "
                        "memory is short."
                    ),
                ),
                io.Float.Input(
                    "overlap",
                    **limits_of("overlap"),
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="What neighbouring tiles share, as a share of the tile.",
                ),
                io.Int.Input(
                    "tile_batch",
                    **limits_of("tile_batch"),
                    optional=True,
                    advanced=True,
                    tooltip="Tiles computed at once; 0 chooses it from the free memory.",
                ),
                io.Float.Input(
                    "fidelity",
                    **limits_of("fidelity"),
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "With the VAE of Load CFW Decoder: how closely the decoder follows the "
                        "input's structure; 0 is the plain VAE."
                    ),
                ),
                io.Int.Input(
                    "feather",
                    **limits_of("feather"),
                    optional=True,
                    advanced=True,
                    tooltip="With masked_only: pixels over which a mask's edge fades.",
                ),
                io.Int.Input(
                    "encoder_interval",
                    **limits_of("encoder_interval"),
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Look at the input anew only every so many noise levels, which is a "
                        "little faster; 1 is exact."
                    ),
                ),
                io.Boolean.Input(
                    "check_person",
                    **limits_of("check_person") | {"default": True},
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Say in the report when the photo probably shows somebody else than the "
                        "adapter's person. Blocks nothing."
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
            outputs=[
                io.Image.Output(tooltip="Restored images."),
                io.String.Output(
                    display_name="report", tooltip="What was done: tiles, memory, masks, time."
                ),
            ],
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
        size = images.target_size(image, scale, longest_side)
        report = RestoreReport(cls.hidden.unique_id)
        restored = restore(model, vae, image, size=size, report=report, **settings)
        return io.NodeOutput(restored, "\n".join(report.lines))
