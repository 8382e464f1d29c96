"""Photos on disk, in folders or tar files, for training and measuring."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..errors import PFStorerError
from .reading import open_picture, read_picture

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Photo:
    """A picture file that is read when it is needed.

    Attributes:
        name: of the file.
        folder: name of the folder that it lies in.
        content: the file, or what is in it (of a tar file).
        short_side: of the picture, in pixels.
    """

    name: str
    folder: str
    content: Path | bytes
    short_side: int

    def load(self) -> Tensor:
        """The picture, turned upright, as (3, H, W) in [0, 1].

        Raises:
            PFStorerError: the file is damaged.
        """
        return _load(self.content, self.name)


def list_photos(places: Sequence[Path], smallest: float = 1) -> list[Photo]:
    """The photos of folders and their subfolders, and of tar files, in the order of their names.

    Args:
        places: folders or uncompressed or compressed tar files.
        smallest: of the short side, in pixels.

    Raises:
        PFStorerError: a place without photos, or a file that is no picture or too small; the file
            is named.
    """
    found = []
    for place in places:
        files: list[tuple[str, str, Path | bytes]]
        if place.is_dir():
            paths = sorted(p for p in place.rglob("*") if p.suffix.lower() in EXTENSIONS)
            files = [(p.name, p.parent.name, p) for p in paths]
        elif place.is_file():
            files = _members(place)
        else:
            raise PFStorerError(f"There is no folder '{place}'; give one with photos in it.")
        if not files:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise PFStorerError(f"The folder '{place}' holds no photo; put {kinds} files into it.")
        for name, folder, content in files:
            with open_picture(content, name) as picture:
                width, height = picture.size
            if min(width, height) < smallest:
                raise PFStorerError(
                    f"Photo '{name}' has {width} x {height} pixels, but a short side of at least "
                    f"{round(smallest)} is needed; replace or remove it."
                )
            found.append(Photo(name, folder, content, min(width, height)))
    return found


def load_photo(path: Path) -> Tensor:
    """A picture file, turned upright, as (3, H, W) in [0, 1].

    Raises:
        PFStorerError: the file is no picture.
    """
    return _load(path, path.name)


def _members(path: Path) -> list[tuple[str, str, Path | bytes]]:
    try:
        with tarfile.open(path) as archive:
            members = sorted(
                (m for m in archive if m.isfile() and _suffix(m.name) in EXTENSIONS),
                key=lambda m: m.name,
            )
            files: list[tuple[str, str, Path | bytes]] = []
            for member in members:
                inside = PurePosixPath(member.name)
                content = archive.extractfile(member)
                assert content is not None  # a file has some
                files.append((inside.name, inside.parent.name, content.read()))
            return files
    except (tarfile.TarError, OSError) as error:
        raise PFStorerError(
            f"'{path.name}' cannot be read as a tar file ({error}); give a folder or a tar file "
            "of photos."
        ) from error


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _load(content: Path | bytes, name: str) -> Tensor:
    return pil_to_tensor(read_picture(content, name)).float() / 255
