"""The people of an evaluation, each with photos to train on and others to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop

from pfstorer_core.degradation import resize_bicubic
from pfstorer_core.errors import PFStorerError
from pfstorer_core.photos import PhotoFolder, load_photo
from pfstorer_core.portraits import portrait_set

FIRST_IDENTITY = 5_000_000  # far above every number that a training draws


@dataclass(frozen=True)
class Person:
    """One person's pictures in three parts that share none.

    Attributes:
        name: of the person, for tables and file names.
        photos: training photos, each (1, H, W, 3) in [0, 1] as ComfyUI's IMAGE.
        references: (R, 3, S, S) in [0, 1], clean pictures that similarity is measured to.
        clean: (M, 3, S, S) in [0, 1], held-out pictures to degrade and restore.
    """

    name: str
    photos: list[Tensor]
    references: Tensor
    clean: Tensor


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
    folders: Sequence[Path], *, photos: int, references: int, pictures: int, size: int, seed: int
) -> list[Person]:
    """Splits folders of photos, one person each, into training and held-out ones.

    Held-out photos become squares around the middle. Everybody gets the same number of pictures:
    at most `pictures`, or what the smallest folder leaves.

    Args:
        folders: one per person, named as the person.
        photos, references, pictures: how many of each part.
        size: side of the held-out pictures in pixels.
        seed: of the split.

    Raises:
        PFStorerError: a folder with too few photos, or a photo that cannot be used.
    """
    listed = [PhotoFolder(folder, size).paths for folder in folders]
    for folder, paths in zip(folders, listed, strict=True):
        if len(paths) <= photos + references:
            raise PFStorerError(
                f"The folder '{folder}' holds {len(paths)} photos, but {photos} to train on, "
                f"{references} as references and at least one to measure on are needed; add "
                "photos or lower --train-photos or --references."
            )
    pictures = min(pictures, *(len(paths) - photos - references for paths in listed))
    people = []
    for folder, paths in zip(folders, listed, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, folder.name))
        order = torch.randperm(len(paths), generator=generator).tolist()
        images = [load_photo(paths[k]) for k in order[: photos + references + pictures]]
        squares = torch.stack([square(image, size) for image in images[photos:]])
        people.append(
            Person(
                folder.resolve().name,
                [image.movedim(0, -1)[None] for image in images[:photos]],  # (1, H, W, 3) each
                squares[:references],
                squares[references:],
            )
        )
    return people


def square(image: Tensor, size: int) -> Tensor:
    """Returns the middle of a picture (3, H, W) as (3, size, size)."""
    cropped = center_crop(image, [min(image.shape[-2:])] * 2)
    return resize_bicubic(cropped[None], (size, size))[0]  # (3, size, size)
