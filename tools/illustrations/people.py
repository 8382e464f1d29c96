"""What the nodes for several people find, recognise and restore."""

from __future__ import annotations

import dataclasses
from typing import Any

from evaluation.adapters import FULL, VARIANTS
from torch import Tensor

from pfstorer_core.drawn.groups import group_photo
from pfstorer_core.people.people import FoundPeople
from pfstorer_core.people.preview import numbered_previews

from .sheets import Rows
from .studio import Studio

NAMED = ("Anna", "Ben")  # the first people of the group; who comes after them has no adapter
CHOICES = f"1={NAMED[0]}"  # what the user knows; `matched` shows what is recognised without
SHOWN = 256  # px: height of a group photo on the page


def found(studio: Studio) -> tuple[Rows, int]:
    """Heads of a group, numbered."""
    photo = group_photo(range(2_000_000, 2_000_005), 288, 720, 5).picture[0]
    people = _people(photo)
    preview = _preview(photo, people, [str(number) for number, *_ in people.numbered()])
    return [[("", preview)]], SHOWN


def matched(studio: Studio) -> tuple[Rows, int]:
    """Who is recognised in an old group photo, and who is not."""
    lq, _ = studio.group("medium")
    return [[("", _recognised(studio, lq)[0])]], SHOWN


def family(studio: Studio) -> tuple[Rows, int]:
    """An old group photo, who is who after a word of the user, and each restored as himself."""
    lq, photo = studio.group("medium")
    preview, model = _recognised(studio, lq, CHOICES)
    cells = [
        ("LQ", lq),
        (f"who is who: {CHOICES}", preview),
        ("restored", studio.restore(model, lq, tile_size=192)),
        ("truth", photo.picture[0]),
    ]
    return [[cell] for cell in cells], SHOWN * 3 // 4


def _people(picture: Tensor) -> FoundPeople:
    """Finds the people of a picture (3, H, W), with what every user has."""
    from pfstorer_core.host.people.finders import BUNDLED, find_people

    return find_people(picture.movedim(0, -1)[None], BUNDLED)


def _preview(picture: Tensor, people: FoundPeople, labels: list[str]) -> Tensor:
    return numbered_previews(picture[None], people, labels)[0]


def _recognised(studio: Studio, picture: Tensor, choices: str = "") -> tuple[Tensor, Any]:
    """Returns the preview of a picture (3, H, W) and the MODEL that restores its people."""
    from pfstorer_core.host.people.personalize import personalize_people

    adapters = []
    for person, name in zip(studio.people, NAMED, strict=False):
        adapter = studio.standard.adapter(person, VARIANTS[FULL])
        adapter.info = dataclasses.replace(adapter.info, name=name)
        adapters.append(adapter)
    people = _people(picture)
    image = picture.movedim(0, -1)[None]  # (1, H, W, 3)
    result = personalize_people(
        studio.base, studio.quick.vae, image, people, adapters, choices=choices
    )
    return _preview(picture, people, result.labels), result.model
