"""Tests of reading photos from folders and tar files."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.photos import list_photos, load_photo


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "anna").mkdir(parents=True)
    for name, size in (("b.png", (40, 30)), ("a.JPG", (20, 60))):
        Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "photos" / "anna" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def test_tar_files_are_read_as_folders_are(folder, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(folder, "photos")
    inside, outside = (list_photos([place]) for place in (tmp_path / "photos.tar", folder))
    assert [(p.name, p.folder, p.short_side) for p in outside] == [
        ("a.JPG", "anna", 20),
        ("b.png", "anna", 30),
    ]
    for a, b in zip(inside, outside, strict=True):
        assert (a.name, a.folder, a.short_side) == (b.name, b.folder, b.short_side)
        assert torch.equal(a.load(), b.load())
    assert outside[1].load().shape == (3, 30, 40)


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # quarter turn
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_photo(tmp_path / "turned.jpg").shape == (3, 40, 30)


def test_what_is_wrong_is_named(folder, tmp_path):
    with pytest.raises(PFStorerError, match="no folder"):
        list_photos([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PFStorerError, match="holds no photo"):
        list_photos([folder, tmp_path / "empty"])
    with pytest.raises(PFStorerError, match=r"a\.JPG.*20 x 60.*at least 30"):
        list_photos([folder], smallest=30)
    with pytest.raises(PFStorerError, match=r"notes\.txt.*tar"):
        list_photos([folder / "notes.txt"])
    (folder / "broken.jpg").write_text("no picture")
    with pytest.raises(PFStorerError, match=r"broken\.jpg"):
        list_photos([folder])


@pytest.mark.parametrize(
    ("mode", "ending"), [("I;16", "png"), ("I;16", "tif"), ("I;16B", "tif"), ("I;16L", "tif")]
)
def test_16_bits_are_scaled_and_not_cut_off(tmp_path, mode, ending):
    path = tmp_path / f"grey.{ending}"
    order = ">u2" if mode == "I;16B" else "<u2"
    levels = np.array([[0, 16384], [32768, 65535]], order)
    Image.frombytes(mode, (2, 2), levels.tobytes()).save(path)
    expected = torch.tensor([[0.0, 0.25], [0.5, 1.0]]).expand(3, 2, 2)
    assert (load_photo(path) - expected).abs().max() < 0.003


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_unknown_range_are_refused(tmp_path, mode):
    path = tmp_path / "grey.tif"
    Image.new(mode, (4, 4), 3).save(path)
    with pytest.raises(PFStorerError, match=r"^Photo 'grey\.tif' has 32 bits per pixel"):
        load_photo(path)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("1", "png"), ("P", "gif"), ("LA", "png"), ("CMYK", "jpg"), ("RGBA", "webp")],
)
def test_other_modes_are_read(tmp_path, mode, ending):
    path = tmp_path / f"white.{ending}"
    Image.new("RGB", (8, 8), "white").convert(mode).save(path)
    assert load_photo(path).min() > 0.98


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "large.png"
    Image.new("L", (20, 20)).save(path)
    with pytest.raises(PFStorerError, match=r"'large\.png' has more than .* megapixels"):
        load_photo(path)
