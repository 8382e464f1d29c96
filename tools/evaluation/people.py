"""The people of an evaluation, each with photos to train on and others to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.photos import Photo, list_photos
from pfstorer_core.pictures.resizing import resize_bicubic

FIRST_IDENTITY = 5_000_000  # far above every number that a training draws


@dataclass(frozen=True)
class Person:
    """One person's pictures.

    Attributes:
        name: of the person, for tables and file names.
        photos: training photos, each (1, H, W, 3) in [0, 1] as ComfyUI's IMAGE.
        references: (R, 3, S, S) in [0, 1], clean pictures that similarity is measured to.
        clean: (M, 3, S, S) in [0, 1], pictures to degrade and restore; none is a training photo.
        compared: (M, R) bool, which references each of them is compared with; None is all.
        lq: (M, 3, S, S) in [0, 1], the clean pictures as they were degraded already; None degrades
            them now.
    """

    name: str
    photos: list[Tensor]
    references: Tensor
    clean: Tensor
    compared: Tensor | None = None
    lq: Tensor | None = None


def derive_seed(*parts: object) -> int:
    """Returns a 32-bit seed of its own for each combination of parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def procedural_person(
    number: int, *, photos: int, references: int, pictures: int, size: int, seed: int
) -> Person:
    """Draws an identity's pictures; fewer photos are the first of more.

    Args:
        number: of the identity.
        photos, references, pictures: how many of each part.
        size: side of all of them in pixels.
        seed: of the views.
    """
    parts = {"photos": photos, "references": references, "pictures": pictures}
    drawn = {
        part: portrait_set(number, count, derive_seed(seed, number, part), size)
        for part, count in parts.items()
    }
    images = drawn["photos"].movedim(1, -1)  # (P, S, S, 3)
    return Person(str(number), list(images.split(1)), drawn["references"], drawn["pictures"])


def photographed_people(
    folder: Path, *, photos: int, pictures: int, size: int, seed: int
) -> list[Person]:
    """Splits each person's photos into training and held-out ones.

    Held-out photos become squares around the middle. Everybody gets the same number of pictures to
    restore: at most `pictures`, or what the smallest folder leaves. The references of each are all
    the other held-out photos of the person, those that are not restored too.

    Args:
        folder: holds a folder per person, named as the person.
        photos, pictures: how many to train on and to restore.
        size: side of the held-out pictures in pixels.
        seed: of the split.

    Raises:
        PFStorerError: no such folders, one with too few photos, or a photo that cannot be used.
    """
    listed = {path.name: list_photos([path], size / 2) for path in _subfolders(folder)}
    for name, found in listed.items():
        if len(found) < photos + 2:
            raise PFStorerError(
                f"The folder '{folder / name}' holds {len(found)} photos, but {photos} to train on "
                "and two to measure on are needed; add photos or lower --train-photos."
            )
    pictures = min(pictures, *(len(found) - photos for found in listed.values()))
    people = []
    for name, found in listed.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        order = torch.randperm(len(found), generator=generator).tolist()
        images = [found[k].load() for k in order]
        held_out = torch.stack([square(image, size) for image in images[photos:]])
        others = ~torch.eye(len(held_out), dtype=torch.bool)
        people.append(
            Person(
                name,
                _training_photos(images[:photos]),
                held_out,
                held_out[:pictures],
                others[:pictures],
            )
        )
    return people


def paired_people(folder: Path, *, photos: int, size: int) -> list[Person]:
    """Reads given LQ pictures, their truth, and references to train on.

    The folder holds `lq/PERSON/NAME`, `truth/PERSON/NAME` and `references/PERSON/*`, pictures of
    any format. LQ pictures and truth are matched by their names without the ending; both become
    squares around the middle. The references are trained on and compared with.

    Args:
        folder: with the three folders.
        photos: references that are trained on and compared with, at most.
        size: side of the pictures in pixels.

    Raises:
        PFStorerError: a folder or a partner of a picture is missing, or there is only one picture.
    """
    people = []
    for path in _subfolders(folder / "lq"):
        lq, truth = (_by_stem(folder / part / path.name) for part in ("lq", "truth"))
        if lonely := sorted(lq.keys() ^ truth.keys()):
            raise PFStorerError(
                f"'{lonely[0]}' of '{path.name}' is in only one of the folders lq and truth of "
                f"'{folder}'; give every picture to both, with the same name."
            )
        given = list_photos([folder / "references" / path.name])[:photos]
        references = [photo.load() for photo in given]
        people.append(
            Person(
                path.name,
                _training_photos(references),
                torch.stack([square(image, size) for image in references]),
                torch.stack([square(truth[stem].load(), size) for stem in truth]),
                lq=torch.stack([square(lq[stem].load(), size) for stem in truth]),
            )
        )
    if sum(len(person.clean) for person in people) < 2:
        raise PFStorerError(f"'{folder}' holds one picture; intervals need two or more.")
    return people


def _subfolders(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*") if path.is_dir())
    if not found:
        raise PFStorerError(f"'{folder}' holds no folders; give one with a folder per person.")
    return found


def _by_stem(folder: Path) -> dict[str, Photo]:
    return {Path(photo.name).stem: photo for photo in list_photos([folder])}


def _training_photos(images: Sequence[Tensor]) -> list[Tensor]:
    return [image.movedim(0, -1)[None] for image in images]  # (1, H, W, 3) each


def square(image: Tensor, size: int) -> Tensor:
    """Returns the middle of a picture (3, H, W) as (3, size, size)."""
    cropped = center_crop(image, [min(image.shape[-2:])] * 2)
    return resize_bicubic(cropped[None], (size, size))[0]  # (3, size, size)
