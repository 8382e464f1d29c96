"""Which files are pictures, told by their first bytes; needs nothing but the standard library."""

from __future__ import annotations

from pathlib import Path

KINDS = "JPEG, PNG, WebP, BMP or TIFF"
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"II*\0", b"MM\0*")
FEWEST = 3  # photos of a person to learn from


class PictureError(ValueError):
    """A file or folder is not what was expected; the message says what to do."""


def is_picture(path: Path) -> bool:
    """Tells whether a file begins as a picture of one of `KINDS` does.

    Raises:
        PictureError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(16).startswith(SIGNATURES)
    except OSError as error:
        raise PictureError(f"{path} cannot be read ({error.strerror}); check the name.") from error


def check_picture(path: Path) -> None:
    """Checks the picture to restore.

    Raises:
        PictureError: it is not there, or no picture.
    """
    if not path.is_file():
        raise PictureError(f"There is no file {path}; give the picture to restore.")
    if not is_picture(path):
        raise PictureError(f"{path} is no {KINDS} file; save the picture as one of these.")


def photos_in(folder: Path, picture: Path) -> list[Path]:
    """Returns the photos of a folder, sorted by name, without the picture to restore.

    Raises:
        PictureError: there is no such folder, or fewer than `FEWEST` photos lie in it.
    """
    if not folder.is_dir():
        raise PictureError(f"There is no folder {folder}; give one with photos of the person.")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    photos = [path for path in files if not path.samefile(picture) and is_picture(path)]
    if len(photos) < FEWEST:
        raise PictureError(
            f"{folder} holds {len(photos)} photo(s) beside the picture to restore, in {len(files)} "
            f"file(s); put at least {FEWEST} photos of the person there, as {KINDS} (photos of "
            "phones in HEIC must be saved anew)."
        )
    return photos
