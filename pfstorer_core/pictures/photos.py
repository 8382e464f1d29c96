"""Photos on disk, in folders or tar files, for training and measuring."""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..errors import PFStorerError

# What Pillow raises of a file that it cannot make out, beside what it documents.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
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
            with _open(content, name) as picture:
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


def read_picture(content: Path | bytes, name: str) -> Image.Image:
    """A picture file or what is in it, turned upright, as RGB with 8 bits; alpha is left out.

    Of an animated picture it is the first frame.

    Args:
        content: a file, or the bytes in it.
        name: how an error shall call it.

    Raises:
        PFStorerError: no picture, a damaged one, one too large to be safe, or one whose values have
            no known range.
    """
    with _open(content, name) as picture:
        file_format = picture.format
        with _unreadable_told(name, "Photo '{name}' is damaged ({error}); replace or remove it."):
            upright = ImageOps.exif_transpose(picture)
            upright.load()
    return _rgb(upright, file_format, name)


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


def _rgb(picture: Image.Image, file_format: str | None, name: str) -> Image.Image:
    # Pillow's own conversion cuts off what is above 8 bits. In older versions a grey PNG file of 16
    # bits has the mode "I".
    if picture.mode.startswith("I;16") or (picture.mode == "I" and file_format == "PNG"):
        levels = np.asarray(picture).astype(np.float32) / 257  # 65535 to 255
        picture = Image.fromarray(levels.round().astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise PFStorerError(
            f"Photo '{name}' has 32 bits per pixel, whose range is not known; save it with 8 or 16."
        )
    return picture.convert("RGB")


def _open(content: Path | bytes, name: str) -> Image.Image:
    sentence = "'{name}' is no picture that can be read; replace or remove it."
    with _unreadable_told(name, sentence):
        return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)


@contextlib.contextmanager
def _unreadable_told(name: str, sentence: str) -> Iterator[None]:
    """Turns what Pillow raises within it into a sentence, which may hold {name} and {error}."""
    try:
        yield
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise PFStorerError(
            f"Photo '{name}' has more than {most} megapixels, which may fill the memory; scale it "
            "down."
        ) from error
    except _UNREADABLE as error:
        raise PFStorerError(sentence.format(name=name, error=error)) from error
