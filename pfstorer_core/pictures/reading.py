"""Reading of picture files, without torch."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import PFStorerError

# What Pillow raises of a file that it cannot make out, beside what it documents.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


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
    with open_picture(content, name) as picture:
        file_format = picture.format
        with _unreadable_told(name, "Photo '{name}' is damaged ({error}); replace or remove it."):
            upright = ImageOps.exif_transpose(picture)
            upright.load()
    return _rgb(upright, file_format, name)


def open_picture(content: Path | bytes, name: str) -> Image.Image:
    """Opens a picture, of which then the size is known and the rest not read yet.

    Args:
        content: a file, or the bytes in it.
        name: how an error shall call it.

    Raises:
        PFStorerError: no picture, or one too large to be safe.
    """
    sentence = "'{name}' is no picture that can be read; replace or remove it."
    with _unreadable_told(name, sentence):
        return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)


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
