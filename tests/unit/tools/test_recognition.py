"""Faces and their recognition by networks that this plugin did not train."""

from pathlib import Path

import pytest
import torch
from evaluation.faces import Face, FaceFinder, landmark_distance, window_of_face
from evaluation.recognition import TFLiteEmbedding, load_recognition
from onnx_networks import write_onnx_means
from tflite_networks import write_tflite_means
from torch import Tensor

from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.face_crops import POINTS
from pfstorer_core.measures.similarity import MINI_EMBEDDING_PATH
from pfstorer_core.pictures.resizing import resize_bicubic


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    pytest.importorskip("dlib")
    return FaceFinder()


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """The astronaut's head and shoulders: (3, 300, 300) in [0, 1]."""
    astronaut = torch.from_numpy(pytest.importorskip("skimage.data").astronaut())
    return astronaut[:300, 80:380].movedim(-1, 0).float() / 255


@pytest.fixture(scope="module")
def face(finder: FaceFinder, photo: Tensor) -> Face:
    found = finder.find(photo)
    assert found is not None
    return found


def synthetic_face(left: float, scale: float) -> Face:
    """A face whose five points lie where ArcFace's crop has them, `scale` times as far apart."""
    five = torch.tensor(POINTS, dtype=torch.float64) * scale + torch.tensor([left, 0.0])
    points = torch.zeros(68, 2, dtype=torch.float64)
    for part, point in zip((range(36, 42), range(42, 48), [30], [48], [54]), five, strict=True):
        points[list(part)] = point
    return Face(torch.stack([points.amin(0), points.amax(0)]), points)


def test_a_face_is_found_at_its_place_in_any_size(
    finder: FaceFinder, photo: Tensor, face: Face
) -> None:
    eyes, mouth = face.five_points()[:2], face.five_points()[3:]
    assert (eyes[0, 0] < eyes[1, 0]) and (eyes[:, 1].max() < mouth[:, 1].min())
    small = finder.find(resize_bicubic(photo[None], (100, 100))[0])
    assert small is not None
    assert (small.moved(3.0).points - face.points).norm(dim=1).mean() < 2
    assert finder.find(torch.zeros(3, 100, 100)) is None


def test_a_face_that_is_moved_back_is_where_it_was(face: Face) -> None:
    moved = face.moved(0.5, 10, 20)
    back = moved.moved(2.0, -5, -10)
    assert torch.allclose(back.points, face.points) and torch.allclose(back.box, face.box)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_the_face_has_its_share_of_the_window(photo: Tensor, face: Face, share: float) -> None:
    window, placed, scale = window_of_face(photo, face, share, 128)
    assert window.shape == (3, 128, 128)
    middle, height = placed.extent()
    assert height == pytest.approx(128 * share, rel=0.02)
    assert (middle - 63.5).abs().max() < 1
    assert scale == pytest.approx(height / face.extent()[1])


def test_the_face_lies_where_the_window_says(finder: FaceFinder, photo: Tensor, face: Face) -> None:
    window, placed, _ = window_of_face(photo, face, 0.5, 128)
    found = finder.find(window)
    assert found is not None
    assert (found.points - placed.points).norm(dim=1).mean() < 2


def test_landmarks_move_with_the_face(finder: FaceFinder, photo: Tensor, face: Face) -> None:
    clean = photo[None].expand(2, -1, -1, -1)
    images = torch.stack([photo, photo.roll(3, dims=2)])
    same, moved = landmark_distance(finder, images, clean, [face, face]).tolist()
    assert same == 0
    assert 1.5 < moved < 4.5


def test_dlib_knows_a_face_again(photo: Tensor, face: Face) -> None:
    pytest.importorskip("dlib")
    network = load_recognition("dlib")
    rows = network.embed(torch.stack([photo, photo * 0.7, photo.flip(1)]), [face] * 3)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3), atol=1e-5)
    same, other = (rows[1:] @ rows[0]).tolist()
    assert same > 0.97 > other


def test_a_tflite_network_sees_its_values_in_batches_of_its_own(tmp_path: Path) -> None:
    path = write_tflite_means(tmp_path / "means.tflite", [2, 112, 112, 3])
    images = torch.rand(3, 3, 1, 1).expand(3, 3, 112, 112)
    seen = (images[:, :, 0, 0] * 255 - 127.5) / 128
    rows = TFLiteEmbedding(path).embed(images)
    assert torch.allclose(rows, torch.nn.functional.normalize(seen, dim=1), atol=1e-4)


@pytest.mark.parametrize("ending", ["tflite", "onnx"])
def test_a_network_sees_the_face_at_its_place(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"means.{ending}"
    if ending == "tflite":
        write_tflite_means(path, [1, 112, 112, 3])
    else:
        pytest.importorskip("onnxruntime")
        write_onnx_means(path, [1, 3, 112, 112])
    network = load_recognition(str(path))
    assert network.needs_faces and network.name == "means" and "aligned" in network.crop
    halves = torch.zeros(2, 3, 60, 120)
    halves[:, 0, :, :60] = 1.0  # red at the left
    halves[:, 2, :, 60:] = 1.0
    left, right = network.embed(halves, [synthetic_face(0, 0.5), synthetic_face(62, 0.5)])
    assert left[0] > 0.5 and left[2] < -0.5
    assert right[2] > 0.5 and right[0] < -0.5


def test_an_embedding_of_this_plugin_sees_whole_pictures() -> None:
    for network in (load_recognition(), load_recognition(str(MINI_EMBEDDING_PATH))):
        assert not network.needs_faces
        assert network.embed(torch.rand(2, 3, 40, 40), []).shape == (2, 128)


def test_files_that_hold_no_recognition_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.tflite"
    with pytest.raises(PFStorerError, match="not a file"):
        load_recognition(str(file))
    file.write_bytes(b"no network")
    with pytest.raises(PFStorerError, match="damaged or no TensorFlow Lite network"):
        load_recognition(str(file))
    write_tflite_means(file, [1, 112, 112, 4])
    with pytest.raises(PFStorerError, match=r"the first of \(1, 112, 112, 4\); expected one"):
        load_recognition(str(file))
