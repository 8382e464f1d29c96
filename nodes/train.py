"""The node that trains identity adapters."""

import dataclasses
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..pfstorer_core.errors import PFStorerError
from ..pfstorer_core.host import train_identity
from ..pfstorer_core.host.feedback import NodeProgress
from ..pfstorer_core.host.load import folders
from ..pfstorer_core.identities.adapter import IdentityAdapter
from ..pfstorer_core.identities.methods import METHODS
from ..pfstorer_core.training.identity import PRECISIONS, PRESETS
from .identity import Identity
from .lists import paired

BY_PRESET = 0
# Inputs whose settings have other names.
SETTINGS = {
    "regularizer": "regularizer_weight",
    "reference_share": "reference_probability",
    "precision": "mixed_precision",
}


class TrainIdentityAdapter(io.ComfyNode):
    """Learns one person from a few photos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerTrainIdentityAdapter",
            display_name="Train Identity Adapter",
            category="PFStorer",
            description=(
                "Learns one person from 3 to 10 good photos, so that Apply Personalization can "
                "restore that person. The base stays as it is. An interrupted training goes on "
                "where it stopped when the same workflow is queued again."
            ),
            search_aliases=["train face", "personalize", "LoRA training", "identity", "finetune"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="MODEL of Load Base Restorer."),
                io.Vae.Input("vae", tooltip="VAE of Load Base Restorer."),
                io.Image.Input(
                    "photos",
                    display_name="photos of the person",
                    tooltip=(
                        "Sharp photos of one person: a batch, or a list of different sizes (Load "
                        "Image (from Folder)). Different poses, light and days are best; the face "
                        "may be anywhere."
                    ),
                ),
                io.String.Input(
                    "name",
                    display_name="name of the person",
                    default="person",
                    tooltip="What to call the person; kept in the file.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="standard",
                    tooltip=_preset_tooltip(),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    # else the frontend draws a new one after each run, and no run is taken up
                    control_after_generate=False,
                    tooltip="Seed of views, degradation and noise; the same seed trains the same.",
                ),
                io.Int.Input(
                    "steps",
                    default=BY_PRESET,
                    min=0,
                    max=100_000,
                    advanced=True,
                    tooltip="Training steps; 0 is the preset's number.",
                ),
                io.Int.Input(
                    "views_per_photo",
                    default=BY_PRESET,
                    min=0,
                    max=1024,
                    advanced=True,
                    tooltip="Augmented views of each photo; 0 is the preset's number.",
                ),
                io.Int.Input(
                    "batch",
                    default=PRESETS["standard"].batch,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Views per step; the regularizer adds as many.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=PRESETS["standard"].learning_rate,
                    min=1e-6,
                    max=0.1,
                    step=1e-6,
                    round=False,
                    advanced=True,
                    tooltip="Peak learning rate; it warms up and then falls as a cosine.",
                ),
                io.Float.Input(
                    "regularizer",
                    default=PRESETS["standard"].regularizer_weight,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    advanced=True,
                    tooltip=(
                        "Weight of the generative regularizer, which makes the adapter know the "
                        "person without any help of the LQ image; 0 turns it off."
                    ),
                ),
                io.Float.Input(
                    "reference_share",
                    default=PRESETS["standard"].reference_probability,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip=(
                        "Share of steps in which the adapter also sees a reference photo's "
                        "features; 0 if no references will be given at restoration."
                    ),
                ),
                io.Int.Input(
                    "tokens",
                    default=PRESETS["standard"].tokens,
                    min=0,
                    max=256,
                    advanced=True,
                    tooltip="Learned identity tokens in each block.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=2048,
                    step=64,
                    advanced=True,
                    tooltip=(
                        "Side of the training views in pixels; 0 is what the base was made for "
                        "(512 or 768 with Stable Diffusion, 128 with the mini restorer)."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    advanced=True,
                    tooltip="Type in which the frozen base computes; 'no' is float32.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    advanced=True,
                    tooltip="Recompute activations: less memory, a third more time.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=PRESETS["standard"].preview_every,
                    min=0,
                    max=10_000,
                    advanced=True,
                    tooltip="Steps between two previews; 0 shows the last only.",
                ),
                *_methods(),
            ],
            outputs=[
                Identity.Output(
                    display_name="adapter", is_output_list=True, tooltip="The person's adapter."
                ),
                io.Image.Output(
                    display_name="report",
                    is_output_list=True,
                    tooltip="One photo degraded, restored with the adapter, clean; the loss curve.",
                ),
            ],
        )

    @classmethod
    def execute(cls, photos: list[Tensor], **inputs: list[Any]) -> io.NodeOutput:
        """Trains the adapter, or one for each of a list of other inputs, all on these photos."""
        runs = paired(**inputs)
        for given in runs:  # a name that no file can have is refused as it was typed
            folders.identity_path(given["name"])
        adapters, reports = zip(*(cls._train(photos, **given) for given in runs), strict=True)
        return io.NodeOutput(list(adapters), list(reports))

    @classmethod
    def _train(
        cls,
        photos: list[Tensor],
        model: Any,
        vae: Any,
        name: str,
        preset: str,
        **settings: Any,
    ) -> tuple[IdentityAdapter, Tensor]:
        """Returns an adapter, and the report as an IMAGE (1, H, W, 3)."""
        for choice in ("steps", "views_per_photo"):
            if settings[choice] == BY_PRESET:
                del settings[choice]
        config = dataclasses.replace(
            PRESETS[preset], **{SETTINGS.get(key, key): value for key, value in settings.items()}
        )
        progress = NodeProgress(cls.hidden.unique_id)
        adapter = train_identity(
            model,
            vae,
            photos,
            config,
            name=name,
            folder=folders.training_folder(),
            unfinished=folders.identity_path(f"unfinished/{name}"),
            on_progress=progress,
            on_warning=progress.warn,
        )
        if progress.sheet is None:
            raise PFStorerError("The training gave no report; this is a fault of PFStorer.")
        return adapter, progress.sheet.movedim(0, -1)[None]


def _methods() -> list[io.Combo.Input]:
    """Returns the choice of a method, once there is one."""
    if len(METHODS) == 1:
        return []
    tooltip = "How the person is written into the UNet."
    return [io.Combo.Input("method", options=list(METHODS), advanced=True, tooltip=tooltip)]


def _preset_tooltip() -> str:
    steps = ", ".join(f"{name} {config.steps}" for name, config in PRESETS.items())
    return f"How long to train, in steps: {steps}."
