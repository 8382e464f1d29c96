"""Nodes for pictures of several people: who is who, and each restored as himself."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..pfstorer_core.host import restore
from ..pfstorer_core.host.feedback import RestoreReport
from ..pfstorer_core.host.measure.judge import AUTOMATIC, embedding_state
from ..pfstorer_core.host.patch.applied import AUTO
from ..pfstorer_core.host.people.finders import find_people
from ..pfstorer_core.host.people.personalize import PersonalizedPeople, personalize_people
from ..pfstorer_core.host.restoring.settings import limits_of
from ..pfstorer_core.people.people import FoundPeople
from .find_people import People, preview_of
from .known_people import KnownPeople, adapter_inputs, recognition_inputs
from .lists import paired
from .restore import MAX_SCALE, MODEL_TOOLTIP, VAE_TOOLTIP

PREVIEW_TOOLTIP = "The picture with each head outlined, with its number and who it is."


class _PeopleNode(io.ComfyNode):
    """A node that sees all adapters for each picture: its inputs are lists."""

    @classmethod
    def fingerprint_inputs(cls, embedding: Any = (AUTOMATIC,), **others: Any) -> Any:
        """Returns name, time and size of the embedding's file, so that a changed one is loaded."""
        return embedding_state(embedding[0])

    @classmethod
    def execute(
        cls,
        adapters: dict[str, list[Any]],
        photos: dict[str, list[Any]] | None = None,
        embedding: Sequence[str] = (AUTOMATIC,),
        **inputs: list[Any],
    ) -> io.NodeOutput:
        """Does its work on each batch of pictures."""
        known = KnownPeople(adapters, photos, embedding)
        results = [cls._of_batch(known, **given) for given in paired(**inputs)]
        *made, previews, reports = (list(x) for x in zip(*results, strict=True))
        return io.NodeOutput(*made, previews, reports, ui=ui.PreviewImage(previews[0], cls=cls))

    @classmethod
    def _of_batch(cls, known: KnownPeople, **given: Any) -> tuple[Any, ...]:
        """Returns the outputs of one batch, of which preview and report are the last."""
        raise NotImplementedError


class MatchPeople(_PeopleNode):
    """Applies to each person of a picture his own adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerMatchPeople",
            display_name="Match People",
            category="PFStorer",
            description=(
                "Tells which adapter is whose in a picture of several people, and makes the MODEL "
                "restore each within the mask of his head. For Tiled Restore."
            ),
            search_aliases=["who is who", "recognise faces", "assign adapters", "group photo"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Vae.Input("vae", tooltip=VAE_TOOLTIP),
                io.Image.Input("image", tooltip="The picture in which the people were found."),
                People.Input("people", tooltip="What Find People found in it."),
                adapter_inputs(),
                _choices(),
                _gamma(),
                _auto_gamma(),
                *recognition_inputs(),
            ],
            outputs=[
                io.Model.Output(
                    is_output_list=True,
                    tooltip="MODEL that restores each person within his mask: for Tiled Restore.",
                ),
                io.Image.Output(
                    display_name="preview", is_output_list=True, tooltip=PREVIEW_TOOLTIP
                ),
                io.String.Output(
                    display_name="report",
                    is_output_list=True,
                    tooltip="How like each head is to each adapter, and what was chosen.",
                ),
            ],
        )

    @classmethod
    def _of_batch(cls, known: KnownPeople, **given: Any) -> tuple[Any, Tensor, str]:
        """Returns MODEL, preview and report of one batch."""
        report = RestoreReport(cls.hidden.unique_id)
        found = _personalized(given, given["people"], known, report)
        preview = preview_of(given["image"], found.people, found.labels)
        return found.model, preview, "\n".join(report.lines)


class RestorePeople(_PeopleNode):
    """Finds the people of a picture, tells them apart and restores each as himself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes inputs and outputs."""
        return io.Schema(
            node_id="PFStorerRestorePeople",
            display_name="Restore People",
            category="PFStorer",
            description=(
                "Restores a picture of several people, each as himself: finds their heads, tells "
                "which adapter is whose, and restores each with his own. Says whom it did not "
                "recognise."
            ),
            search_aliases=["family photo", "group photo", "several people", "face restore"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Vae.Input("vae", tooltip=VAE_TOOLTIP),
                io.Image.Input("image", tooltip="The old picture; a batch or a list works."),
                adapter_inputs(),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.1,
                    max=MAX_SCALE,
                    step=0.1,
                    tooltip="Output size as a multiple of the input size.",
                ),
                _choices(),
                _gamma(),
                _auto_gamma(),
                io.Boolean.Input(
                    "masked_only",
                    **limits_of("masked_only"),
                    display_name="recognised people only",
                    tooltip=(
                        "Restore the recognised heads alone; the rest of the picture is scaled and "
                        "stays as it is."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    **limits_of("steps"),
                    tooltip="Sampling steps. More add detail, fewer stay closer to the input.",
                ),
                io.Int.Input(
                    "seed",
                    **limits_of("seed"),
                    control_after_generate=True,
                    tooltip="Seed of the noise; the same seed gives the same result.",
                ),
                People.Input(
                    "people",
                    optional=True,
                    tooltip=(
                        "What Find People found, in place of looking for people here: for masks, "
                        "boxes or SEGS of other nodes."
                    ),
                ),
                *recognition_inputs(),
            ],
            outputs=[
                io.Image.Output(is_output_list=True, tooltip="The restored picture."),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="One soft mask for each head, in the order of their numbers.",
                ),
                io.Image.Output(
                    display_name="preview", is_output_list=True, tooltip=PREVIEW_TOOLTIP
                ),
                io.String.Output(
                    display_name="report",
                    is_output_list=True,
                    tooltip="Who was recognised and who was not, and what was done.",
                ),
            ],
        )

    @classmethod
    def _of_batch(
        cls,
        known: KnownPeople,
        scale: float,
        people: FoundPeople | None = None,
        **given: Any,
    ) -> tuple[Tensor, Tensor, Tensor, str]:
        """Returns picture, masks, preview and report of one batch."""
        image, vae = given["image"], given["vae"]
        report = RestoreReport(cls.hidden.unique_id)
        report.status("looking for people")
        people = people or find_people(image)
        report.add(people.lines())
        found = _personalized(given, people, known, report)
        settings = {name: given[name] for name in ("masked_only", "steps", "seed")}
        restored = restore(found.model, vae, image, scale=scale, report=report, **settings)
        preview = preview_of(image, people, found.labels)
        return restored, people.masks(), preview, "\n".join(report.lines)


def _choices() -> io.String.Input:
    return io.String.Input(
        "choices",
        default="",
        display_name="who is who",
        tooltip=(
            "Your own word, where the node is wrong or unsure: numbers of the preview and names of "
            "adapters, such as '2=Anna, 3=nobody'. The others are recognised."
        ),
    )


def _gamma() -> io.Float.Input:
    return io.Float.Input(
        "gamma",
        default=1.0,
        min=0.0,
        max=2.0,
        step=0.05,
        display_name="how strongly",
        tooltip="How strongly each is restored as himself: 0 is not at all, 1 as learned.",
    )


def _auto_gamma() -> io.Boolean.Input:
    return io.Boolean.Input(
        "auto_gamma",
        default=False,
        advanced=True,
        display_name="choose how strongly",
        tooltip="Choose for each person how strongly, from how spoilt the face is.",
    )


def _personalized(
    given: dict[str, Any],
    people: FoundPeople,
    known: KnownPeople,
    report: RestoreReport,
) -> PersonalizedPeople:
    return personalize_people(
        given["model"],
        given["vae"],
        given["image"],
        people,
        known.adapters,
        choices=given["choices"],
        gamma=AUTO if given["auto_gamma"] else given["gamma"],
        recognition=known.recognition,
        report=report,
    )
