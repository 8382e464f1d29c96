"""Wrong photos and pictures are named before anything is set up."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from picture_files import FEWEST, PictureError, check_picture, is_picture, photos_in
from PIL import Image
from setup_host import REPO
from torchvision.transforms.functional import to_pil_image


@pytest.fixture
def picture() -> Image.Image:
    return to_pil_image(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_picture_is_told_by_its_content(
    tmp_path: Path, picture: Image.Image, ending: str
) -> None:
    saved = tmp_path / f"photo.{ending}"
    picture.save(saved)
    assert is_picture(saved.rename(tmp_path / "photo"))
    (tmp_path / f"text.{ending}").write_text("no picture")
    assert not is_picture(tmp_path / f"text.{ending}")


def test_photos_are_listed_without_the_picture_and_other_files(
    tmp_path: Path, picture: Image.Image
) -> None:
    for name in "dbca":
        picture.save(tmp_path / f"{name}.PNG", "PNG")
    (tmp_path / "e.txt").write_text("notes")
    (tmp_path / "f.png").mkdir()
    found = photos_in(tmp_path, tmp_path / "b.PNG")
    assert [path.name for path in found] == ["a.PNG", "c.PNG", "d.PNG"]


def test_too_few_photos_are_counted(tmp_path: Path, picture: Image.Image) -> None:
    old = tmp_path / "old.png"
    picture.save(old)
    for number in range(FEWEST - 1):
        picture.save(tmp_path / f"{number}.png")
    with pytest.raises(PictureError, match=r"holds 2 photo\(s\) beside .* in 3 file\(s\); put"):
        photos_in(tmp_path, old)


def test_a_missing_or_other_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"There is no file .*gone\.jpg"):
        check_picture(tmp_path / "gone.jpg")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(PictureError, match=r"photo\.heic is no JPEG, PNG"):
        check_picture(tmp_path / "photo.heic")


def test_the_demo_says_so_before_it_sets_anything_up(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "old.png")

    def run(*arguments: object) -> tuple[int, str, str]:
        command = [sys.executable, "-S", REPO / "scripts" / "demo.py", *arguments]
        ended = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False
        )
        return ended.returncode, ended.stdout, ended.stderr

    gone = tmp_path / "gone"
    code, out, error = run("--photos", gone, "--picture", tmp_path / "old.png")
    assert (code, out) == (1, "")
    assert error == f"error: There is no folder {gone}; give one with photos of the person.\n"
    code, _, error = run("--photos", tmp_path)
    assert code == 2 and "give both --photos and --picture" in error
