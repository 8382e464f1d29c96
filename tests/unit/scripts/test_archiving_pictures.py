"""Originals of an archive: what is read of them, and what restored pictures keep."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from archiving.pictures import digest_of, encoded, read_bytes, read_original
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from sample_pictures import picture
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.errors import PFStorerError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6">Anna</a></x:xmpmeta>'
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x05\0\x05Title"
KINDS = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}


def photo(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    return to_pil_image(picture(height, width)).convert(mode)


def exif() -> Image.Exif:
    written = Image.Exif()
    written[ExifTags.Base.Orientation] = 6
    written[ExifTags.Base.Make] = "Agfa"
    written[ExifTags.Base.ImageDescription] = "Anna, about 1932"
    details = written.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = "1932:05:01 12:00:00"
    details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight] = 40, 24
    written.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return written


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def again(content: bytes, kind: str, size: tuple[int, int] | None = None) -> Image.Image:
    """Reads a file and writes what was read as a picture of another size, as a restoration is."""
    original = read_original(content, "photo")
    restored = original.picture.resize(size or original.picture.size)
    written = Image.open(io.BytesIO(encoded(original, restored, kind, 95)))
    written.load()
    assert written.format == kind
    return written


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_stay_and_the_picture_is_upright(kind: str) -> None:
    options = {"exif": exif(), "icc_profile": SRGB, "xmp": XMP, "dpi": (300, 300)}
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("Title", "Großmutter")
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if kind == "TIFF":
        options["exif"][700] = XMP
        for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            options["exif"][group] = dict(options["exif"].get_ifd(group))
    if kind == "JPEG":
        segment = b"\xff\xed" + struct.pack(">H", len(IPTC) + 2) + IPTC
        options |= {"comment": b"box 7", "extra": segment}
    kept = again(file_of(photo(), kind, **options), kind, (48, 80))

    assert kept.size == (48, 80), "turned upright"
    assert kept.info["icc_profile"] == SRGB
    found = kept.getexif()
    assert found.get(ExifTags.Base.Orientation, 1) == 1, "or a viewer would turn it again"
    assert found[ExifTags.Base.Make] == "Agfa"
    assert found[ExifTags.Base.ImageDescription] == "Anna, about 1932"
    details = found.get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.DateTimeOriginal] == "1932:05:01 12:00:00"
    assert details[ExifTags.Base.ExifImageWidth] == 48
    assert details[ExifTags.Base.ExifImageHeight] == 80
    assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    xmp = kept.info.get("xmp") or kept.info["XML:com.adobe.xmp"].encode()
    assert b"Anna" in xmp and b"Orientation" not in xmp
    if kind != "WEBP":
        assert kept.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    if kind == "PNG":
        assert kept.text["Title"] == "Großmutter"
    if kind == "JPEG":
        assert kept.info["comment"] == b"box 7"
        assert ("APP13", IPTC) in kept.applist


def test_pixels_are_those_of_the_restoration() -> None:
    kept = again(file_of(photo(), "TIFF"), "PNG")
    assert np.array_equal(np.asarray(kept), np.asarray(photo()))


def test_grey_scans_stay_grey_with_their_profile() -> None:
    content = file_of(photo(mode="L"), "TIFF")
    assert again(content, "TIFF").mode == "L"
    original = read_original(content, "photo")
    red = Image.merge("RGB", [original.picture.getchannel("R"), *photo(mode="RGB").split()[1:]])
    assert Image.open(io.BytesIO(encoded(original, red, "PNG", 95))).mode == "RGB"
    deep = Image.fromarray(np.linspace(0, 65535, 600, dtype=np.uint16).reshape(20, 30))
    assert again(file_of(deep, "PNG"), "PNG").mode == "L"


def test_a_profile_of_other_colours_is_left_out_with_a_note() -> None:
    content = file_of(photo(mode="L"), "PNG", icc_profile=SRGB)
    original = read_original(content, "photo")
    assert original.icc == b"" and "profile" in original.notes[0]
    damaged = read_original(file_of(photo(), "PNG", icc_profile=b"x" * 40), "photo")
    assert damaged.icc == b"" and "profile" in damaged.notes[0]


def test_opacity_stays_where_the_format_has_some() -> None:
    image = photo()
    image.putalpha(Image.linear_gradient("L").resize(image.size))  # 4 to 251
    kept = again(file_of(image, "PNG"), "PNG", (80, 48))
    assert kept.mode == "RGBA" and kept.getchannel("A").getextrema() == (4, 251)
    original = read_original(file_of(image, "PNG"), "photo")
    encoded(original, original.picture, "JPEG", 95)
    assert any("opacity" in note for note in original.notes)
    image.putalpha(255)
    assert read_original(file_of(image, "PNG"), "photo").alpha is None


def test_damaged_exif_is_told_and_does_not_cost_the_picture() -> None:
    content = file_of(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
    original = read_original(content, "photo")
    assert original.picture.size == (40, 24)
    encoded(original, original.picture, "JPEG", 95)


def test_further_pages_are_told() -> None:
    content = file_of(photo(), "TIFF", save_all=True, append_images=[photo(), photo()])
    assert "3 pictures" in read_original(content, "scan.tif").notes[0]


def test_a_picture_too_large_for_its_format_is_told() -> None:
    original = read_original(file_of(photo(), "PNG"), "photo")
    with pytest.raises(PFStorerError, match="16400 x 2 pixels cannot be a WEBP"):
        encoded(original, Image.new("RGB", (16400, 2)), "WEBP", 95)


def bomb() -> bytes:
    """A PNG that says to have 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


@pytest.mark.parametrize(
    "content",
    [b"", b"<html></html>", bomb(), file_of(photo(), "JPEG")[:300], file_of(photo(), "PNG")[:900]],
    ids=["empty", "page", "bomb", "cut JPEG", "cut PNG"],
)
def test_damaged_files_are_named(content: bytes) -> None:
    with pytest.raises(PFStorerError, match=r"'anna\.jpg'"):
        read_original(content, "anna.jpg")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "nothing")
    with pytest.raises(PFStorerError, match=r"'nowhere\.jpg' cannot be read"):
        read_bytes(tmp_path / "nowhere.jpg")
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_of(read_bytes(tmp_path / "a")).startswith("ba7816bf")
