"""The page of a blind test: one HTML file with all pictures in it, and how it is read again."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.reading import read_picture

from .study import Results, Screen

TEMPLATE = Path(__file__).with_name("page.html")
LIKENESS = "Which looks more like the person?"
QUALITY = "Which is the better picture?"
LARGEST_KEY = 1 << 26  # bytes of a page's key once unpacked; a page of a million screens has less
LARGEST_SIDE = 16383  # pixels that WebP can hold


@dataclass(frozen=True)
class Page:
    """What a page asked, as the tally needs it.

    Attributes:
        digest: names the page's content; votes carry it.
        questions: the questions, which are asked on every screen.
        screens: what each screen shows.
        codes: for each screen, the codes of its left and right picture, which votes carry.
    """

    digest: str
    questions: list[str]
    screens: list[Screen]
    codes: list[tuple[str, str]]


def write_page(
    path: Path,
    results: Results,
    screens: Sequence[Screen],
    questions: Sequence[str],
    seed: int,
    limit: int = 1024,
    quality: int = 92,
) -> str:
    """Writes the page and returns its digest.

    The names of methods and files are only in a packed block that no script of the page reads.

    Args:
        path: the file.
        results: the pictures.
        screens: what is shown, in this order.
        questions: asked one after the other on every screen.
        seed: of the codes that stand for the pictures.
        limit: pixels of the longer side above which a picture is made smaller.
        quality: of WebP, 1 to 99, or 100 for lossless.

    Raises:
        PFStorerError: a picture cannot be read, restorations of one picture have different
            proportions, there is no question, or `limit` or `quality` are out of range.
    """
    if not (1 <= quality <= 100 and 16 <= limit <= LARGEST_SIDE):
        raise PFStorerError(
            f"The quality is {quality} and the limit {limit} px; give a quality of 1 to 100 and a "
            f"limit of 16 to {LARGEST_SIDE} px."
        )
    if not questions or not all(question.strip() for question in questions):
        raise PFStorerError("A question of the page is empty; give at least one with words.")
    encoded = _encoded(results, limit, quality)
    study = _study(results, screens, questions, encoded, seed)
    key = base64.b64encode(zlib.compress(json.dumps([asdict(s) for s in screens]).encode()))
    content = json.dumps(study, sort_keys=True).encode() + key
    study["page"] = hashlib.sha256(content).hexdigest()[:16]
    parts = {"study": _script_json(study), "key": key.decode()}
    template = TEMPLATE.read_text(encoding="utf-8")
    # In one pass: a question may contain any text, also what looks like the other mark.
    page = re.sub("@@(study|key)@@", lambda mark: parts[mark[1]], template)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    digest: str = study["page"]
    return digest


def _study(
    results: Results,
    screens: Sequence[Screen],
    questions: Sequence[str],
    encoded: dict[tuple[str, ...], str],
    seed: int,
) -> dict[str, Any]:
    """Returns what the page shows, with codes in place of methods and files."""
    order = sorted(encoded)
    random.Random(seed).shuffle(order)  # else their order would tell the methods apart
    codes = {key: f"p{number}" for number, key in enumerate(order, 1)}
    return {
        "questions": [question.strip() for question in questions],
        "screens": [
            {
                "left": codes["candidate", screen.left, screen.picture],
                "right": codes["candidate", screen.right, screen.picture],
                "lq": codes.get(("lq", screen.picture)),
                "references": [
                    codes["reference", str(photo)]
                    for photo in results.references.get(screen.picture, [])
                ],
            }
            for screen in screens
        ],
        "pictures": {codes[key]: encoded[key] for key in order},
    }


def _encoded(results: Results, limit: int, quality: int) -> dict[tuple[str, ...], str]:
    """Returns all pictures as they stand in the page, by what they are."""
    encoded: dict[tuple[str, ...], str] = {}
    for name in results.names:
        for method, picture in _candidates(results, name, limit).items():
            encoded["candidate", method, name] = _data_uri(picture, quality)
        if results.lq:
            encoded["lq", name] = _data_uri(_open(results.lq[name], limit), quality)
    for photo in {photo for photos in results.references.values() for photo in photos}:
        encoded["reference", str(photo)] = _data_uri(_open(photo, limit), quality)
    return encoded


def read_page(path: Path) -> Page:
    """Reads what a page asks.

    Raises:
        PFStorerError: the file is no page of this script.
    """
    try:
        text = path.read_text(encoding="utf-8")
        study = json.loads(_block(text, "study"))
        unpacker = zlib.decompressobj()
        packed = base64.b64decode(_block(text, "key"), validate=True)
        key = json.loads(unpacker.decompress(packed, LARGEST_KEY))
        screens = [Screen(**screen) for screen in key]
        codes = [(screen["left"], screen["right"]) for screen in study["screens"]]
        if len(codes) != len(screens):
            raise ValueError("its parts do not belong together")
        return Page(study["page"], list(study["questions"]), screens, codes)
    except (OSError, ValueError, KeyError, TypeError, binascii.Error, zlib.error) as error:
        raise PFStorerError(
            f"{path} cannot be read as a page of a blind test ({error}); give the HTML file that "
            "'blind_test.py make' wrote."
        ) from error


def _block(text: str, name: str) -> str:
    found = re.search(f'<script type="[a-z/-]+" id="{name}">(.*?)</script>', text, re.DOTALL)
    if found is None:
        raise ValueError(f"it has no part {name!r}")
    return found[1]


def _script_json(value: Any) -> str:
    """Returns JSON that cannot end the script element that it stands in."""
    text = json.dumps(value)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _candidates(results: Results, name: str, limit: int) -> dict[str, Image.Image]:
    """Returns each method's restoration of one picture, all of the smallest one's size.

    A difference in size would tell the methods apart.
    """
    pictures = {m: _open(files[name], limit) for m, files in results.methods.items()}
    smallest = min((picture.size for picture in pictures.values()), key=lambda size: size[0])
    for method, picture in pictures.items():
        width, height = picture.size
        if abs(smallest[0] * height / width - smallest[1]) > 1.0:
            sizes = ", ".join(f"{m!r} {p.width} x {p.height}" for m, p in pictures.items())
            raise PFStorerError(
                f"The restorations of {name!r} have different proportions ({sizes}); give pictures "
                "of the same section."
            )
        if picture.size != smallest:
            pictures[method] = picture.resize(smallest, Image.Resampling.LANCZOS)
    return pictures


def _open(path: Path, limit: int) -> Image.Image:
    """Returns a picture as RGB without metadata, its longer side at most `limit` px."""
    picture = read_picture(path, str(path))
    picture.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    return picture


def _data_uri(picture: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    # A fresh copy of the pixels: WebP would keep a colour profile, which may name a program.
    plain = Image.frombytes("RGB", picture.size, picture.tobytes())
    plain.save(buffer, "WEBP", quality=quality, lossless=quality == 100, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
