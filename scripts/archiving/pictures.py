"""Originals as they are read, and restored pictures as they are written: metadata stays."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from pfstorer_core.errors import PFStorerError, first_line
from pfstorer_core.pictures.reading import read_picture

FORMATS = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif", "webp": ".webp"}
BY_EXTENSION = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
# What says how the file's pixels are stored, and Orientation: untrue of the restored picture.
_STORAGE_TAGS = {254, 255, *range(256, 260), 262, 263, *range(264, 267), 273, 274, 277, 278, 279}
_STORAGE_TAGS |= {280, 281, 284, *range(288, 292), 301, *range(317, 326), 330, 332, 334}
_STORAGE_TAGS |= {*range(336, 344), 347, *range(512, 522), *range(529, 533), 34675}
_GROUPS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_XMP_TAG, _PHOTOSHOP_TAG, _IPTC_TAG = 700, 34377, 33723  # of TIFF
_MOST_IN_JPEG = 65502  # bytes of XMP in its one marker
_COLORS = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY", "LA": b"GRAY"}  # in a profile's header


@dataclass
class Original:
    """A picture to restore.

    Attributes:
        digest: SHA-256 of the file.
        picture: turned upright, RGB with 8 bits.
        grey: the file has no colours.
        alpha: its opacity where it has any, else None.
        icc: colour profile of `picture`.
        exif: what the file says of the photo, without how its pixels are stored.
        xmp: as XML.
        iptc: JPEG's APP13 segments.
        texts: PNG's, by keyword.
        tags: IPTC data and XMP as TIFF keeps them.
        more: `dpi` and JPEG's `comment`.
        notes: a sentence for each thing that is not kept.
    """

    digest: str
    picture: Image.Image
    grey: bool = False
    alpha: Image.Image | None = None
    icc: bytes = b""
    exif: Image.Exif = field(default_factory=Image.Exif)
    xmp: bytes = b""
    iptc: list[bytes] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    tags: dict[int, bytes] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def keep(self, what: str, read: Callable[[], None]) -> None:
        """Reads a kind of metadata; where it is damaged, a note says so."""
        try:
            read()
        except Exception as error:  # Pillow's parsers raise many types
            self.notes.append(f"Its {what} cannot be read ({first_line(error)}) and is left out.")


def read_bytes(path: Path) -> bytes:
    """Returns what is in a file.

    Raises:
        PFStorerError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise PFStorerError(
            f"'{path.name}' cannot be read ({first_line(error)}); replace it."
        ) from error


def digest_of(content: bytes) -> str:
    """Returns the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def read_original(content: bytes, name: str) -> Original:
    """Reads a picture and what its file says about it.

    Args:
        content: the file.
        name: how an error shall call it.

    Raises:
        PFStorerError: no picture, or one that cannot be restored.
    """
    original = Original(digest_of(content), read_picture(content, name))
    with Image.open(io.BytesIO(content)) as file:
        original.grey = file.mode in ("1", "L", "LA", "I") or file.mode.startswith("I;16")
        pages = getattr(file, "n_frames", 1)
        if pages > 1 and file.format in ("TIFF", "PNG", "WEBP"):
            original.notes.append(f"It holds {pages} pictures; the first one is restored.")
        original.keep("colour profile", lambda: _read_profile(original, file))
        original.keep("opacity", lambda: _read_alpha(original, file))
        original.keep("EXIF data", lambda: _read_exif(original, file))
        original.keep("other metadata", lambda: _read_rest(original, file))
    return original


def _read_profile(original: Original, file: Image.Image) -> None:
    profile = file.info.get("icc_profile") or b""
    if not profile:
        return
    space = profile[16:20]
    if space in (b"RGB ", b"GRAY") and (space == b"GRAY") == original.grey:
        original.icc = profile
    elif space == b"CMYK" and file.mode == "CMYK":
        # Pillow's plain conversion, which the profile does not describe, would stay else.
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        upright = ImageOps.exif_transpose(file)
        converted = ImageCms.profileToProfile(upright, source, target, outputMode="RGB")
        assert converted is not None  # as it is not done in place
        original.picture, original.icc = converted, target.tobytes()
    else:
        original.notes.append("Its colour profile does not fit its pixels and is left out.")


def _read_alpha(original: Original, file: Image.Image) -> None:
    if "A" in file.getbands() or "transparency" in file.info:
        alpha = ImageOps.exif_transpose(file).convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            original.alpha = alpha


def _read_exif(original: Original, file: Image.Image) -> None:
    found, kept = file.getexif(), Image.Exif()
    for tag, value in found.items():
        if tag not in _STORAGE_TAGS | {_XMP_TAG, _PHOTOSHOP_TAG, _IPTC_TAG, *ExifTags.IFD}:
            kept[tag] = value
    for group in _GROUPS:
        if values := found.get_ifd(group):
            kept.get_ifd(group).update(values)
    kept.tobytes()  # raises where a value cannot be written again
    original.exif = kept


def _read_rest(original: Original, file: Image.Image) -> None:
    for key in ("xmp", "XML:com.adobe.xmp"):
        if key in file.info:
            found = ImageOps.exif_transpose(file).info[key]  # without Orientation
            original.xmp = found.encode() if isinstance(found, str) else bytes(found)
    original.more = {key: file.info[key] for key in ("dpi", "comment") if key in file.info}
    if isinstance(file.info.get("comment"), str):  # as of formats other than JPEG
        original.more["comment"] = file.info["comment"].encode()
    if file.format == "TIFF":
        found_tags = {tag: file.getexif().get(tag) for tag in (_PHOTOSHOP_TAG, _IPTC_TAG)}
        original.tags = {tag: data for tag, data in found_tags.items() if isinstance(data, bytes)}
    original.iptc = [data for name, data in getattr(file, "applist", []) if name == "APP13"]
    if file.format == "PNG":
        texts = dict(getattr(file, "text", {}))
        texts.pop("XML:com.adobe.xmp", None)
        original.texts = {str(key): str(value) for key, value in texts.items()}


def encoded(original: Original, restored: Image.Image, kind: str, quality: int) -> bytes:
    """Returns the file of a restored picture, with the original's metadata.

    Adds a note to `original` for each thing that the file cannot hold.

    Args:
        original: what it was made of.
        restored: RGB, of any size.
        kind: Pillow's name of the format.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        PFStorerError: the picture is too large for the format.
    """
    picture = restored.convert("RGB")
    if original.grey and kind != "WEBP" and _is_grey(picture):  # which is never grey
        picture = picture.getchannel("R")
    if original.alpha is not None:
        if kind in ("PNG", "TIFF", "WEBP"):
            picture.putalpha(original.alpha.resize(picture.size, Image.Resampling.BICUBIC))
        else:
            original.notes.append(f"{kind} cannot hold its opacity, which is left out.")
    try:
        options = _options(original, picture, kind, quality)
        return _saved(picture, kind, options | _metadata(original, picture, kind))
    except Exception as error:  # Pillow's writers raise many types of what they cannot take
        original.notes.append(f"Its metadata cannot be kept ({first_line(error)}).")
    try:
        return _saved(picture, kind, _options(original, picture, kind, quality))
    except (OSError, ValueError) as error:
        raise PFStorerError(
            f"The restored picture of {picture.width} x {picture.height} pixels cannot be a {kind} "
            f"file ({first_line(error)}); choose another --format."
        ) from error


def _saved(picture: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _is_grey(picture: Image.Image) -> bool:
    red, green, blue = picture.split()
    return not (
        ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox()
    )


def _options(original: Original, picture: Image.Image, kind: str, quality: int) -> dict[str, Any]:
    """Returns how the pixels are written."""
    options: dict[str, Any] = {}
    if kind == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
    elif kind == "WEBP":
        options |= {"quality": quality, "method": 4}
    elif kind == "TIFF":
        options["compression"] = "tiff_lzw"
    if original.icc and original.icc[16:20] == _COLORS[picture.mode]:
        options["icc_profile"] = original.icc
    elif original.icc:
        original.notes.append("Its colour profile does not fit the result and is left out.")
    return options


def _metadata(original: Original, picture: Image.Image, kind: str) -> dict[str, Any]:
    """Returns what the file says beside its pixels; BMP holds the resolution alone."""
    options: dict[str, Any] = {}
    if "dpi" in original.more and kind != "WEBP":
        options["dpi"] = original.more["dpi"]
    if kind == "BMP":
        return options
    exif = _sized(original.exif, picture)
    if kind == "PNG":
        texts = PngInfo()
        for key, text in original.texts.items():
            texts.add_itxt(key, text)
        if original.xmp:
            texts.add_itxt("XML:com.adobe.xmp", original.xmp.decode("utf-8", "replace"))
        options["pnginfo"] = texts
    elif kind == "TIFF":
        tags = original.tags | ({_XMP_TAG: original.xmp} if original.xmp else {})
        for tag, data in tags.items():
            exif[tag] = data
        for group in _GROUPS:
            if values := exif.get_ifd(group):
                exif[group] = dict(values)
                options["compression"] = "raw"  # what compresses cannot write these
    elif kind == "WEBP" or len(original.xmp) <= _MOST_IN_JPEG:
        options["xmp"] = original.xmp
    else:
        original.notes.append("Its XMP data is too long for JPEG and is left out.")
    if kind == "JPEG":
        segments = (b"\xff\xed" + (len(s) + 2).to_bytes(2, "big") + s for s in original.iptc)
        options["extra"] = b"".join(segments)
        options |= {"comment": original.more["comment"]} if "comment" in original.more else {}
    if len(exif) or any(exif.get_ifd(group) for group in _GROUPS):
        options["exif"] = exif
    return options


def _sized(exif: Image.Exif, picture: Image.Image) -> Image.Exif:
    """Returns EXIF data that gives the size of the restored picture where it gave one."""
    details = exif.get_ifd(ExifTags.IFD.Exif)
    for tag, size in (
        (ExifTags.Base.ExifImageWidth, picture.width),
        (ExifTags.Base.ExifImageHeight, picture.height),
    ):
        if tag in details:
            details[tag] = size
    return exif
