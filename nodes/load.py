"""Nodes that load models."""

from pathlib import Path

from comfy_api.latest import io

from ..pfstorer_core.host import load_base_restorer, load_cfw
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
                "Loads a face and photo restorer of the StableSR family: MODEL, CLIP and VAE. "
                "The MODEL needs an LQ image: use Tiled Restore, or Condition on LQ Image with "
                "any sampler."
            ),
            search_aliases=["StableSR", "SFT", "face restore", "super resolution", "upscale"],
            inputs=[
                io.Combo.Input(
                    "restorer",
                    options=folders.restorer_names(),
                    tooltip=(
                        "Restorer file in models/pfstorer_restorers. 'mini (bundled)' comes with "
                        "the plugin: small, for photos with faces of about 128 px."
                    ),
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[BUNDLED, *folders.checkpoint_names()],
                    tooltip=(
                        "Stable Diffusion checkpoint that the restorer was trained on, in "
                        f"models/checkpoints. Choose '{BUNDLED}' for the mini restorer."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="Diffusion model with the restorer in it."),
                io.Clip.Output(tooltip="Text encoder; the mini restorer's knows one prompt only."),
                io.Vae.Output(tooltip="Autoencoder that encodes the LQ image and decodes."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, restorer: str, checkpoint: str) -> list[tuple[str, int, int]]:
        """Returns name, time and size of the files, so that a changed file is loaded again."""
        return [folders.file_state(path) for path in cls._paths(restorer, checkpoint) if path]

    @classmethod
    def execute(cls, restorer: str, checkpoint: str) -> io.NodeOutput:
        """Loads the files."""
        return io.NodeOutput(*load_base_restorer(*cls._paths(restorer, checkpoint)))

    @classmethod
    def _paths(cls, restorer: str, checkpoint: str) -> tuple[Path, Path | None]:
        return (
            folders.restorer_path(restorer),
            None if checkpoint == BUNDLED else folders.checkpoint_path(checkpoint),
        )


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
