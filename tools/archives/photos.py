"""Archives of drawn people, with damaged files of every kind among them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import ExifTags, Image, ImageCms
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.drawn.portraits import portrait_set

FIRST_PERSON = 7_000_000
DRAWN = 200  # portraits at most; photos are sections of them, no two alike
DRAWN_SIDE = 128  # pixels
SMALLEST, LARGEST = 64, 512  # pixels of a side
FOLDER = 100  # photos, whose names begin anew in each folder
DAMAGED = 0.03
KINDS = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp"}
_WEIGHTS = (8, 4, 2, 1, 1)
Damage = Callable[[bytes, random.Random], bytes]


def _header(width: int, height: int) -> bytes:
    """The beginning of a PNG file that says to be of a size."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + content
        + struct.pack(">I", zlib.crc32(content))
    )


def _deep(_: bytes, __: random.Random) -> bytes:
    stream = io.BytesIO()
    Image.new("F", (64, 64), 0.5).save(stream, "TIFF")
    return stream.getvalue()


DAMAGES: dict[str, Damage] = {
    "empty": lambda content, choose: b"",
    "cut short": lambda content, choose: content[: choose.randrange(20, len(content) // 2)],
    "only the first bytes": lambda content, choose: content[:12],
    "a page of the web": lambda content, choose: b"<!DOCTYPE html><title>404</title>",
    "nonsense": lambda content, choose: choose.randbytes(len(content)),
    "zeros": lambda content, choose: bytes(len(content)),
    "no first bytes": lambda content, choose: content[16:],
    "too many pixels": lambda content, choose: _header(60_000, 60_000) + content,
    "no pixels": lambda content, choose: _header(64, 64),
    "values without a range": _deep,
}


def draw(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Writes an archive, and returns what is damaged how, by the file's path in the folder.

    Args:
        folder: made.
        count: of files.
        seed: the same gives the same files.
    """
    choose = random.Random(seed)
    sides = [choose.randint(SMALLEST, LARGEST) for _ in range(2 * count)]
    portraits = [
        to_pil_image(portrait_set(FIRST_PERSON + k, 1, seed, 128)[0])
        for k in range(min(count, DRAWN))
    ]
    damaged: dict[str, str] = {}
    step = max(1, round(1 / DAMAGED))
    for number in range(count):
        picture = _section(portraits[number % len(portraits)], choose)
        picture = picture.resize(
            (sides[2 * number], sides[2 * number + 1]), Image.Resampling.BICUBIC
        )
        kind = choose.choices(list(KINDS), _WEIGHTS)[0]
        name = f"box {number // FOLDER}/photo {number % FOLDER:03}{KINDS[kind]}"
        content = _written(picture, kind, choose)
        if number % step == step // 2:
            what = list(DAMAGES)[len(damaged) % len(DAMAGES)]
            content = DAMAGES[what](content, choose)
            damaged[name] = what
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return damaged


def _section(portrait: Image.Image, choose: random.Random) -> Image.Image:
    side = choose.uniform(80, 128)
    left, top = choose.uniform(0, 128 - side), choose.uniform(0, 128 - side)
    return portrait.transform(
        (128, 128),
        Image.Transform.EXTENT,
        (left, top, left + side, top + side),
        Image.Resampling.BICUBIC,
    )


def _written(picture: Image.Image, kind: str, choose: random.Random) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = choose.choice([1, 1, 3, 6, 8])
    exif[ExifTags.Base.ImageDescription] = f"Drawn {choose.random()}"
    if choose.random() < 0.2:
        picture = picture.convert("L")
    options = {"exif": exif, "quality": choose.randint(40, 90)} if kind != "BMP" else {}
    if picture.mode == "RGB" and kind != "BMP" and choose.random() < 0.5:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        options["icc_profile"] = profile
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
