"""Faces are counted by ComfyUI's own MediaPipe nodes; the detector's weights are made here.

Mesh and blendshape weights are random. The detector's are set by hand so that it fires where a
picture is bright: its count then shows that the picture reaches the network as it should.
"""

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.mediapipe.face_landmarker import FaceLandmarker
from torch import Tensor, nn

from pfstorer_core.host.faces import face_finder
from pfstorer_core.photo_checks import check_photos
from pfstorer_core.portraits import portrait_set

FACE = 32.0  # pixels of the detector's input: side of the boxes
PARTS = ("face_oval", "left_eye", "right_eye", "left_eyebrow", "right_eyebrow", "lips")


@pytest.fixture
def folder() -> Iterator[Path]:
    """ComfyUI's folder of detection models, empty again after the test."""
    path = Path(folder_paths.models_dir, "detection")
    path.mkdir(parents=True, exist_ok=True)
    yield path
    for file in path.iterdir():
        file.unlink()


def bright_spot_detector(detector: nn.Module) -> None:
    """Makes a short-range detector see a face wherever red, green and blue are near 1."""
    for parameter in detector.parameters():
        nn.init.zeros_(parameter)
    # Zero blocks pass their input on; the value of a pixel is its mean in [-1, 1].
    detector.stem.weight.data[0, :, 2, 2] = 1.0 / 3.0
    for head in (detector.cls_16, detector.cls_8):
        nn.init.constant_(head.bias, -20.0)
    detector.cls_16.weight.data[:, 0] = 40.0
    # Each anchor has 16 numbers: centre, width and height of the box, then six points.
    boxes = detector.reg_16.bias.data.view(2, 16)
    boxes[:, 2:4] = FACE
    boxes[:, 6] = FACE / 4.0  # the second eye, right of the first


def landmarker_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    short, full = (FaceLandmarker(detector_variant=variant) for variant in ("short", "full"))
    bright_spot_detector(short.detector)
    for parameter in full.detector.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(full.detector.cls_dw.bias, -20.0)
    weights = {
        **{f"detector_short.{key}": value for key, value in short.detector.state_dict().items()},
        **{f"detector_full.{key}": value for key, value in full.detector.state_dict().items()},
        **{f"mesh.{key}": value for key, value in short.mesh.state_dict().items()},
        **{f"blendshapes.{key}": value for key, value in short.blendshapes.state_dict().items()},
        "canonical_vertices": torch.randn(468, 3),
        "procrustes_indices": torch.arange(0, 468, 14, dtype=torch.int32),
        "procrustes_weights": torch.full((34,), 0.1),
    }
    for part in (*PARTS, "irises", "nose", "tesselation"):
        weights[f"topology.{part}"] = torch.tensor([[0, 1], [1, 2], [2, 0]], dtype=torch.int32)
    return weights


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
