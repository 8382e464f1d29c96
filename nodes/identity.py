"""Nodes that keep and apply identity adapters."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..pfstorer_core.errors import PFStorerError
from ..pfstorer_core.host import apply_identity
from ..pfstorer_core.host.feedback import show_lines
from ..pfstorer_core.host.images import encode_references
from ..pfstorer_core.host.load import folders
from ..pfstorer_core.host.patch.applied import AUTO
from ..pfstorer_core.host.patch.chosen_gammas import gamma_report
from ..pfstorer_core.identities.adapter import IdentityAdapter
from .lists import paired

Identity = io.Custom("PFSTORER_IDENTITY")
ADAPTER_TOOLTIP = "Identity adapter: what Train Identity Adapter or Load Identity Adapter gives."


class SaveIdentity(io.ComfyNode):
    """Keeps an adapter as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerSaveIdentity",
            display_name="Save Identity Adapter",
            category="PFStorer",
            description=(
                "Writes an identity adapter to models/pfstorer_identities. The file holds no photo "
                "and no path."
            ),
            search_aliases=["save adapter", "export identity"],
            is_output_node=True,
            inputs=[
                Identity.Input("adapter", tooltip=ADAPTER_TOOLTIP),
                io.String.Input(
                    "file_name",
                    display_name="file name",
                    default="person",
                    tooltip="Name in models/pfstorer_identities; a folder may stand before it.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Replace a file of that name; else a number is added to the name.",
                ),
            ],
            outputs=[io.String.Output(display_name="file_name", tooltip="Name of the file.")],
        )

    @classmethod
    def execute(cls, adapter: IdentityAdapter, file_name: str, overwrite: bool) -> io.NodeOutput:
        """Writes the file."""
        path = folders.identity_path(file_name, free=not overwrite)
        adapter.save(path)
        name = folders.identity_name(path)
        return io.NodeOutput(name, ui={"text": (f"Saved {name}",)})


class LoadIdentity(io.ComfyNode):
    """Reads an adapter's file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs, with the files that are there now."""
        return io.Schema(
            node_id="PFStorerLoadIdentity",
            display_name="Load Identity Adapter",
            category="PFStorer",
            description="Reads an identity adapter from models/pfstorer_identities.",
            search_aliases=["load adapter", "load face", "identity"],
            inputs=[
                io.Combo.Input(
                    "file_name",
                    display_name="file name",
                    options=folders.identity_names(),
                    tooltip="File in models/pfstorer_identities.",
                )
            ],
            outputs=[
                Identity.Output(display_name="adapter", tooltip="The person's adapter."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file_name: str) -> tuple[str, int, int]:
        """Returns name, time and size of the file, so that a changed file is loaded again."""
        return folders.file_state(folders.find_identity(file_name))

    @classmethod
    def execute(cls, file_name: str) -> io.NodeOutput:
        """Reads the file."""
        return io.NodeOutput(IdentityAdapter.load(folders.find_identity(file_name)))


class ApplyPersonalization(io.ComfyNode):
    """Makes a restorer's MODEL restore one person."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerApplyPersonalization",
            display_name="Apply Personalization",
            category="PFStorer",
            description=(
                "Makes a restorer's MODEL restore the adapter's person. Chain several for several "
                "people, each with a mask."
            ),
            search_aliases=["identity", "apply adapter", "PFStorer", "personalize", "face"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model", tooltip="MODEL of Load Base Restorer, or of another of this node."
                ),
                Identity.Input("adapter", tooltip=ADAPTER_TOOLTIP),
                io.Float.Input(
                    "gamma",
                    display_name="how strongly",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip=(
                        "Strength of the identity: 0 is the base, 1 as trained; more than 1 seldom "
                        "helps."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where in the picture the person is; without it, everywhere.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Share of the sampling at which the identity begins to act.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Share of the sampling at which it ends.",
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip=(
                        "Photos of the person to look at while restoring; not needed, for the "
                        "adapter knows the person. Needs vae."
                    ),
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="VAE of Load Base Restorer, for references."
                ),
                io.Boolean.Input(
                    "auto_gamma",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Choose gamma for each photo from how degraded it is, in place of the "
                        "value above; Tiled Restore's report shows what was chosen."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(is_output_list=True, tooltip="MODEL that restores this person.")
            ],
        )

    @classmethod
    def execute(cls, references: list[Tensor] | None = None, **inputs: list[Any]) -> io.NodeOutput:
        """Applies the adapter; inputs are lists so that references may differ in size."""
        if references and not inputs.get("vae"):
            raise PFStorerError(
                "References are given without a VAE; connect the VAE of 'Load Base Restorer'."
            )
        personalized, lines = [], []
        for given in paired(**inputs):
            model = given["model"]
            latents = encode_references(model, given["vae"], references) if references else None
            gamma = AUTO if given.get("auto_gamma", False) else given["gamma"]
            personalized.append(
                apply_identity(
                    model,
                    given["adapter"],
                    gamma,
                    given.get("mask"),
                    given["start"],
                    given["end"],
                    latents,
                )
            )
            lines += gamma_report(personalized[-1])
        show_lines(cls.hidden.unique_id, lines)
        return io.NodeOutput(personalized)
