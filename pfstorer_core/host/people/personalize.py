"""Gives a restorer's MODEL each person of a picture within the mask of his head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...errors import PFStorerError
from ...identities.adapter import IdentityAdapter
from ...people.matching import Match, no_such_head, split_choices
from ...people.people import FoundPeople
from ..feedback import RestoreReport
from ..images import split_alpha
from ..patch.apply_identity import apply_identity
from .evidence import match_people
from .recognition import Recognition


@dataclass(frozen=True)
class PersonalizedPeople:
    """A MODEL that restores the people of pictures, each as himself.

    Args:
        model: the MODEL, with one identity for each adapter that is somebody's.
        people: who was found.
        matches: whose each head is, in the order of their numbers.
        labels: of each head for a preview, such as "2 Anna", or "3 ?" where nobody was recognised.
    """

    model: Any
    people: FoundPeople
    matches: list[Match]
    labels: list[str]


def personalize_people(
    model: Any,
    vae: Any,
    image: Tensor,
    people: FoundPeople,
    adapters: Sequence[IdentityAdapter],
    *,
    choices: str = "",
    gamma: float | Literal["auto"] = 1.0,
    recognition: Recognition | None = None,
    report: RestoreReport | None = None,
) -> PersonalizedPeople:
    """Tells which adapter is whose, and applies each within the mask of the head.

    In each picture of a batch people are recognised anew, and an adapter is one head's at most.

    Args:
        model: MODEL of `load_base_restorer`, which all adapters were trained on; stays as it is.
        vae: its VAE.
        image: (B, H, W, 1 | 3 | 4) in [0, 1], the pictures in which the people were found.
        people: who was found in them.
        adapters: of people who may be in them.
        choices: what the user knows better, see `people.matching.parse_choices`.
        gamma: how strongly, as for `apply_identity`.
        recognition: see `match_people`.
        report: gets the tables, and who was not recognised.

    Raises:
        PFStorerError: no adapters, people of other pictures, choices that cannot be read, or an
            adapter of another base.
    """
    report = report or RestoreReport()
    rgb, _ = split_alpha(image)
    _check(rgb, people, adapters)
    matches: list[Match] = []
    chosen = _by_picture(choices, people)
    if recognition is not None:
        report.add(recognition.lines([adapter.person for adapter in adapters]))
    for picture, (first, heads) in enumerate(zip(people.firsts(), people.heads, strict=True), 1):
        if len(rgb) > 1:
            report.line(f"Picture {picture}:")
        matches += match_people(
            model,
            vae,
            rgb[picture - 1 : picture],
            heads,
            adapters,
            choices=chosen[picture - 1],
            first=first,
            recognition=recognition,
            report=report,
        )
    for k, adapter in enumerate(adapters):
        numbers = [number for number, found in enumerate(matches, 1) if found.adapter == k]
        if numbers:
            model = apply_identity(model, adapter, gamma, people.mask_of(numbers))
    labels = [
        f"{number} {'?' if found.adapter is None else adapters[found.adapter].person}"
        for number, found in enumerate(matches, 1)
    ]
    report.add(_unknown(matches))
    return PersonalizedPeople(model, people, matches, labels)


def _check(rgb: Tensor, people: FoundPeople, adapters: Sequence[IdentityAdapter]) -> None:
    if not adapters:
        raise PFStorerError(
            "There is no adapter of anybody; connect what 'Train Identity Adapter' or 'Load "
            "Identity Adapter' gives."
        )
    height, width = people.size
    if (len(people.heads), height, width) != (len(rgb), *rgb.shape[2:]):
        raise PFStorerError(
            f"The people were found in {len(people.heads)} image(s) of {width} x {height} px, but "
            f"{len(rgb)} of {rgb.shape[3]} x {rgb.shape[2]} px shall be restored; give both nodes "
            "the same image."
        )


def _by_picture(choices: str, people: FoundPeople) -> list[str]:
    """Returns the choices for the heads of each picture, of which each has its own numbers."""
    if len(people.heads) == 1:
        return [choices]
    parts: list[list[str]] = [[] for _ in people.heads]
    of = {number: picture for number, picture, _ in people.numbered()}
    for part in split_choices(choices):
        number = part.partition("=")[0].strip()
        if not number.isdecimal():
            parts[0].append(part)  # where it is refused
        elif int(number) in of:
            parts[of[int(number)]].append(part)
        else:
            raise no_such_head(part, people.count)
    return [",".join(some) for some in parts]


def _unknown(matches: Sequence[Match]) -> list[str]:
    """Says whose heads nobody was recognised in."""
    numbers = [str(number) for number, found in enumerate(matches, 1) if found.adapter is None]
    if not numbers:
        return []
    return [
        f"Not recognised: {', '.join(numbers)}, restored without an adapter; if you know who it "
        f"is, say so ({numbers[0]}=name)"
    ]
