"""What a blind test compares, and in which order and on which sides it is shown."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfstorer_core.errors import PFStorerError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LQ_FOLDERS = ("lq",)
REFERENCE_FOLDERS = ("reference", "references")
MOST_REFERENCES = 4  # more would be too small to see beside the two candidates


@dataclass(frozen=True)
class Results:
    """Pictures to compare and to show beside them; all keys but methods are the pictures' names.

    Attributes:
        methods: by method, the file of each picture; every method has the same names.
        lq: the low-quality picture of each, or empty.
        references: photos of the person in each, or empty.
    """

    methods: dict[str, dict[str, Path]]
    lq: dict[str, Path]
    references: dict[str, list[Path]]

    @property
    def names(self) -> list[str]:
        """The pictures' names, sorted."""
        return sorted(next(iter(self.methods.values())))


@dataclass(frozen=True)
class Screen:
    """Two restorations of one picture, side by side.

    Attributes:
        picture: the picture's name.
        left: method shown on the left.
        right: method shown on the right.
        repeat_of: index of the earlier screen that this one shows again with its sides swapped.
    """

    picture: str
    left: str
    right: str
    repeat_of: int | None = None


def read_results(folder: Path, lq: Path | None = None, references: Path | None = None) -> Results:
    """Returns the pictures of a folder that has one folder of equally named pictures per method.

    Names are compared without their endings. Folders named `lq` and `references` are no methods.

    Args:
        folder: the results.
        lq: low-quality pictures of the same names; by default the folder `lq` of the results.
        references: photos of the people, either of the same names or, where no name is a picture's,
            of the one person whom all pictures show; by default the folder `references`.

    Raises:
        PFStorerError: there are fewer than two methods, or pictures are missing.
    """
    if not folder.is_dir():
        raise PFStorerError(
            f"{folder} is no folder; give the folder that has one folder of pictures per method."
        )
    beside = (*LQ_FOLDERS, *REFERENCE_FOLDERS)
    children = sorted(c for c in folder.iterdir() if c.is_dir() and not c.name.startswith("."))
    given = {path.resolve() for path in (lq, references) if path is not None}
    candidates = [c for c in children if c.name.lower() not in beside and c.resolve() not in given]
    if len(candidates) < 2:
        raise PFStorerError(
            f"{folder} has {len(candidates)} folder(s) of a method; a comparison needs at least 2, "
            "each with equally named pictures."
        )
    methods = {candidate.name: _pictures(candidate) for candidate in candidates}
    names = set().union(*methods.values())
    for method, files in methods.items():
        _refuse_missing(names - files.keys(), f"The method {method!r}", len(names))
    lq = lq or _child(children, LQ_FOLDERS)
    shown_lq = _pictures(lq) if lq else {}
    if lq:
        _refuse_missing(names - shown_lq.keys(), f"The folder {lq.name!r}", len(names))
    references = references or _child(children, REFERENCE_FOLDERS)
    photos = _pictures(references) if references else {}
    if names.isdisjoint(photos):
        everyone = list(photos.values())[:MOST_REFERENCES]
        people = {name: everyone for name in names} if everyone else {}
    else:
        _refuse_missing(names - photos.keys(), f"The folder {references.name!r}", len(names))
        people = {name: [photos[name]] for name in names}
    return Results(methods, {name: shown_lq[name] for name in names} if lq else {}, people)


def plan_screens(
    names: Sequence[str], methods: Sequence[str], repeat: float, seed: int
) -> list[Screen]:
    """Returns all pairs of methods for each picture in random order, and some of them twice.

    Of each pair of methods, either one is on the left in half of the pictures. A repeat swaps the
    sides of a screen of the first half and comes in the second.

    Args:
        names: the pictures.
        methods: at least two.
        repeat: share of the screens to show twice, in [0, 0.5]; above 0 it is at least one.
        seed: of order, sides and repeats.

    Raises:
        PFStorerError: the share lies outside its range.
    """
    if not 0.0 <= repeat <= 0.5:
        raise PFStorerError(f"The share of repeats is {repeat:g}; give one from 0 to 0.5.")
    chance = random.Random(seed)
    screens = []
    for pair in itertools.combinations(methods, 2):
        swapped = [number % 2 == 1 for number in range(len(names))]
        if chance.random() < 0.5:  # which side gets one more of an odd number
            swapped = [not swap for swap in swapped]
        chance.shuffle(swapped)
        for name, swap in zip(names, swapped, strict=True):
            screens.append(Screen(name, *(reversed(pair) if swap else pair)))
    chance.shuffle(screens)
    first = (len(screens) + 1) // 2
    count = min(first, max(1, round(repeat * len(screens)))) if repeat else 0
    later: list[Screen] = screens[first:]
    for index in sorted(chance.sample(range(first), count)):
        again = Screen(screens[index].picture, screens[index].right, screens[index].left, index)
        # Never first of the second half if that can be helped: the screen may be the one before.
        later.insert(chance.randint(min(1, len(later)), len(later)), again)
    return screens[:first] + later


def _child(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((folder for folder in folders if folder.name.lower() in names), None)


def _pictures(folder: Path) -> dict[str, Path]:
    """Returns the pictures of a folder by their names without the ending."""
    if not folder.is_dir():
        raise PFStorerError(f"{folder} is no folder; give a folder of pictures.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise PFStorerError(
                f"{folder} has both {found[path.stem].name} and {path.name}; leave one of them."
            )
        found[path.stem] = path
    if not found:
        raise PFStorerError(
            f"{folder} has no pictures; put them there as {', '.join(SUFFIXES)} or remove it."
        )
    return found


def _refuse_missing(missing: set[str], what: str, count: int) -> None:
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise PFStorerError(
            f"{what} lacks {len(missing)} of {count} pictures ({shown}); give all folders pictures "
            "of the same names."
        )
