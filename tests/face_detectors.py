"""Weights for ComfyUI's MediaPipe nodes, made by hand.

Mesh and blendshape weights are random. The detector's are set so that it fires where a picture is
bright: its count then shows that the picture reaches the network as it should.
"""

import torch
from comfy_extras.mediapipe.face_landmarker import FaceLandmarker
from torch import Tensor, nn

FACE = 32.0  # pixels of the detector's input: side of the boxes
PARTS = ("face_oval", "left_eye", "right_eye", "left_eyebrow", "right_eyebrow", "lips")


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
    """Returns weights of both detectors and of the rest, as in a file of models/detection."""
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
