"""Faces are found by ComfyUI's own MediaPipe nodes, with the weights of `face_detectors`."""

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import torch
from torch import Tensor

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.host.measure.faces import face_finder, face_points
from pfstorer_core.measures.photo_checks import check_photos

pytest.importorskip("comfy_extras.mediapipe.face_landmarker")

from face_detectors import landmarker_weights


@pytest.fixture
def folder() -> Iterator[Path]:
    """ComfyUI's folder of detection models, empty again after the test."""
    path = Path(folder_paths.models_dir, "detection")
    path.mkdir(parents=True, exist_ok=True)
    yield path
    for file in path.iterdir():
        file.unlink()


def spots(*places: tuple[int, int]) -> Tensor:
    """A dark photo (3, 240, 320) with bright squares."""
    photo = torch.full((3, 240, 320), 0.1)
    for top, left in places:
        photo[:, top : top + 12, left : left + 12] = 1.0
    return photo


def test_there_is_no_finder_without_a_model(folder: Path) -> None:
    assert face_finder() is None


def test_other_and_damaged_models_are_passed_over(folder: Path) -> None:
    safetensors.torch.save_file({"head.weight": torch.zeros(2)}, folder / "another.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "pickle.pth").write_bytes(b"\x80\x02.")
    assert face_finder() is None


def test_an_incomplete_model_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = landmarker_weights()
    del weights["canonical_vertices"]
    safetensors.torch.save_file(weights, folder / "cut.safetensors")
    assert face_finder() is None
    assert "'cut.safetensors' cannot be used" in caplog.text


def test_faces_are_counted_in_any_mode(folder: Path) -> None:
    safetensors.torch.save_file({"head.weight": torch.zeros(2)}, folder / "a.safetensors")
    safetensors.torch.save_file(landmarker_weights(), folder / "b.safetensors")
    photos = [spots(), spots((60, 60)), spots((60, 60), (170, 240))]
    for inference, grad in ((False, True), (True, False)):
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            find_faces = face_finder()
            assert find_faces is not None
            assert [find_faces(photo) for photo in photos] == [0, 1, 2]
    # made in inference mode, used in a training
    with torch.enable_grad():
        assert find_faces(photos[1]) == 1


def test_the_points_of_faces_come_with_the_largest_first(folder: Path) -> None:
    assert face_points() is None
    safetensors.torch.save_file(landmarker_weights(), folder / "faces.safetensors")
    find_points = face_points()
    assert find_points is not None
    faces = find_points(spots((60, 60), (170, 240)))
    assert [points.shape for points in faces] == [(5, 2), (5, 2)]
    areas = [float((points.amax(0) - points.amin(0)).prod()) for points in faces]
    assert areas[0] >= areas[1]
    # the random mesh puts them anywhere near: each face has its own
    places = sorted(float(points[:, 0].mean()) for points in faces)
    assert abs(places[0] - 66) < 60 and abs(places[1] - 246) < 60
    assert not faces[0].is_inference()


def test_photos_are_checked_with_it(folder: Path) -> None:
    safetensors.torch.save_file(landmarker_weights(), folder / "faces.safetensors")
    photos = [
        *(portrait_set(1_000_000, 3, 0, 64) * 0.4),
        spots((60, 60)),
        spots((60, 60), (170, 240)),
    ]
    warnings = check_photos(photos, 64, find_faces=face_finder())
    faces = [warning for warning in warnings if "found in photo" in warning]
    assert [warning.split(";")[0] for warning in faces] == [
        "No face was found in photo 1",
        "No face was found in photo 2",
        "No face was found in photo 3",
        "2 faces were found in photo 5",
    ]
