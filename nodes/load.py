"""Nodes that load models."""

from typing import Any

from comfy_api.latest import io

from ..pfstorer_core.host import load_base_restorer, load_cfw, load_supir
from ..pfstorer_core.host.load import folders

BUNDLED = "bundled in restorer"


class LoadBaseRestorer(io.ComfyNode):
    """Loads a restorer and the diffusion model that it steers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs, with the files that are there now."""
        return io.Schema(
            node_id="PFStorerLoadBaseRestorer",
            display_name="Load Base Restorer",
            category="PFStorer",
            description=(
                "Loads a face and photo restorer of the StableSR family, or takes SUPIR: MODEL, "
                "CLIP and VAE. The MODEL needs an LQ image: use Tiled Restore, or Condition on LQ "
                "Image with any sampler."
            ),
            search_aliases=[
                "StableSR",
                "SUPIR",
                "SFT",
                "face restore",
                "super resolution",
                "upscale",
            ],
            inputs=[
                io.Combo.Input(
                    "restorer",
                    options=folders.restorer_names(),
                    tooltip=(
                        "Restorer file in models/pfstorer_restorers. 'mini (bundled)' comes with "
                        "the plugin: small, for photos with faces of about 128 px. 'SUPIR in the "
                        "MODEL' takes the one that Apply SUPIR Patch gave to the MODEL."
                    ),
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[BUNDLED, *folders.checkpoint_names()],
                    tooltip=(
                        "Stable Diffusion that the restorer was trained on, in models/checkpoints "
                        f"or, as a folder, models/diffusers. Choose '{BUNDLED}' for the mini "
                        "restorer. Not used where a MODEL is connected."
                    ),
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "Stable Diffusion of any other loader, in place of checkpoint; or the "
                        "MODEL of Apply SUPIR Patch."
                    ),
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Its text encoder, for the empty prompt."
                ),
                io.Vae.Input("vae", optional=True, tooltip="Its VAE, which a MODEL needs."),
            ],
            outputs=[
                io.Model.Output(tooltip="Diffusion model with the restorer in it."),
                io.Clip.Output(tooltip="Text encoder; the mini restorer's knows one prompt only."),
                io.Vae.Output(tooltip="Autoencoder that encodes the LQ image and decodes."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, restorer: str, checkpoint: str, **_: Any
    ) -> list[tuple[str, int, int]]:
        """Returns name, time and size of the files, so that a changed file is loaded again."""
        states = []
        if restorer != folders.SUPIR:
            states.append(folders.file_state(folders.restorer_path(restorer)))
        if checkpoint != BUNDLED:
            states += folders.checkpoint_state(folders.checkpoint_path(checkpoint))
        return states

    @classmethod
    def execute(
        cls, restorer: str, checkpoint: str, model: Any = None, clip: Any = None, vae: Any = None
    ) -> io.NodeOutput:
        """Loads the files, or takes what other loaders loaded."""
        if restorer == folders.SUPIR:
            return io.NodeOutput(*load_supir(model, clip, vae))
        path = folders.restorer_path(restorer)
        if any(x is not None for x in (model, clip, vae)):
            return io.NodeOutput(*load_base_restorer(path, loaded=(model, clip, vae)))
        stored = None if checkpoint == BUNDLED else folders.checkpoint_path(checkpoint)
        return io.NodeOutput(*load_base_restorer(path, stored))


class LoadCFWDecoder(io.ComfyNode):
    """Loads an autoencoder whose decoder can look at the LQ image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs, with the files that are there now."""
        return io.Schema(
            node_id="PFStorerLoadCFW",
            display_name="Load CFW Decoder",
            category="PFStorer",
            description=(
                "Loads a VAE with controllable feature wrapping (CFW). With it, Tiled Restore's "
                "fidelity keeps the result closer to the input; elsewhere it is a plain VAE."
            ),
            search_aliases=["StableSR", "controllable feature wrapping", "fidelity", "VAE"],
            inputs=[
                io.Combo.Input(
                    "cfw",
                    options=folders.vae_names(),
                    tooltip="StableSR's CFW checkpoint in models/vae, .ckpt or .safetensors.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="VAE for Tiled Restore; its fidelity then works.")],
        )

    @classmethod
    def fingerprint_inputs(cls, cfw: str) -> tuple[str, int, int]:
        """Returns name, time and size of the file, so that a changed file is loaded again."""
        return folders.file_state(folders.vae_path(cfw))

    @classmethod
    def execute(cls, cfw: str) -> io.NodeOutput:
        """Loads the file."""
        return io.NodeOutput(load_cfw(folders.vae_path(cfw)))
