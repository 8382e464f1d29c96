"""What nodes for several people know of them: adapters, and photos for a recognition network."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..pfstorer_core.errors import PFStorerError
from ..pfstorer_core.host.images import split_alpha
from ..pfstorer_core.host.measure.judge import (
    AUTOMATIC,
    NONE,
    choose_judge,
    embedding_choices,
)
from ..pfstorer_core.host.people.recognition import Recognition
from ..pfstorer_core.identities.adapter import IdentityAdapter
from .identity import Identity

MOST_ADAPTERS = 24


class KnownPeople:
    """The people whom pictures are searched for.

    Args:
        adapters: what each socket brings, by the socket's name; each may bring a list.
        photos: IMAGEs that each socket brings: of the person of the adapter of the same number. For
            a socket with a list of adapters, one IMAGE for each of them.
        embedding: of `embedding_choices`, one.

    Raises:
        PFStorerError: photos without an adapter, another number of photos than of a socket's
            adapters, several embeddings, or an embedding that cannot be loaded.
    """

    adapters: list[IdentityAdapter]
    recognition: Recognition | None  # None where nobody asked for it

    def __init__(
        self,
        adapters: dict[str, list[Any]],
        photos: dict[str, list[Any]] | None,
        embedding: Sequence[str],
    ):
        sockets = {_number(name): _present(given) for name, given in adapters.items()}
        shown = {_number(name): _present(given) for name, given in (photos or {}).items()}
        self.adapters = [adapter for given in sockets.values() for adapter in given]
        photographed: list[list[Tensor]] = []
        for number, given in sockets.items():
            photographed += _by_person(number, len(given), shown.pop(number, []))
        for number, given in shown.items():
            if given:
                raise PFStorerError(
                    f"There are photos at photos_{number} but no adapter at adapter_{number}; "
                    "connect photos and adapter of a person to inputs of the same number."
                )
        if len(set(embedding)) > 1:
            raise PFStorerError(
                f"face recognition is a list of {len(embedding)}; all people are recognised by one "
                "network, so give one."
            )
        asked = any(photographed) or embedding[0] != AUTOMATIC
        self.recognition = None
        if asked and embedding[0] != NONE:
            self.recognition = Recognition(choose_judge(embedding[0]), photographed)


def _number(socket: str) -> int:
    """Returns the number of a socket such as "adapter_3"."""
    return int(socket.rpartition("_")[2])


def _present(given: Sequence[Any] | None) -> list[Any]:
    return [value for value in given or () if value is not None]


def _by_person(number: int, people: int, images: list[Tensor]) -> list[list[Tensor]]:
    """Returns the photos (3, H, W) of each person of a socket."""
    pictures = [list(split_alpha(image)[0]) for image in images]
    if people == 1 or not pictures:
        return [[photo for some in pictures for photo in some]] * people
    if len(pictures) != people:
        raise PFStorerError(
            f"adapter_{number} brings {people} adapters and photos_{number} {len(pictures)} "
            "image(s); connect a list with one batch of photos for each of them, or one adapter to "
            "each input."
        )
    return pictures


def adapter_inputs() -> io.Autogrow.Input:
    """Returns the sockets of the adapters."""
    return io.Autogrow.Input(
        "adapters",
        template=io.Autogrow.TemplateNames(
            Identity.Input("adapter"),
            names=[f"adapter_{k}" for k in range(1, MOST_ADAPTERS + 1)],
            min=1,
        ),
        tooltip=(
            "The people who may be in the picture, each an adapter: what Train Identity Adapter or "
            "Load Identity Adapter gives. There is always room for one more."
        ),
    )


def recognition_inputs() -> list[io.Input]:
    """Returns the inputs of a face recognition network."""
    return [
        io.Autogrow.Input(
            "photos",
            template=io.Autogrow.TemplateNames(
                io.Image.Input("photos"),
                names=[f"photos_{k}" for k in range(1, MOST_ADAPTERS + 1)],
                min=0,
            ),
            optional=True,
            tooltip=(
                "Good photos of the person of the adapter of the same number, if you have a face "
                "recognition network: it helps to tell people apart. Nothing of them is kept."
            ),
        ),
        io.Combo.Input(
            "embedding",
            options=embedding_choices(),
            default=AUTOMATIC,
            optional=True,
            advanced=True,
            display_name="face recognition",
            tooltip=(
                "What recognises faces besides the restorer, from photos of the people: an ArcFace "
                "network in models/pfstorer_embeddings (automatic: the first there), the bundled "
                "one for drawn portraits, or none."
            ),
        ),
    ]
