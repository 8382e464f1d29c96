"""Drawing of portraits: the layers of a head, painted from back to front.

All lengths are in head units (1 is half the head's height) and in head coordinates: x to the
picture's right, y down, z towards the camera, the head's centre at 0. Everything is element-wise
over the pixels, so a whole batch is drawn at once and torch.compile can fuse it.
"""

from __future__ import annotations

from torch import Tensor

from .camera import Frame, Window, background, develop, grid, spread, stand
from .face import face
from .figure import body, ears, spectacles
from .hair import front_hair, long_hair
from .head import Values

BEHIND_HEAD = (long_hair, body)
HEAD = (ears, face, front_hair, spectacles)


def draw(identity: Values, view: Values, size: int) -> Tensor:
    """The whole batch in one go, without checks: `render`'s arithmetic, made for torch.compile.

    Args:
        identity: values of `Identities`, B rows each.
        view: values of `Views`, B rows each.
        size: height and width of the pictures in pixels.

    Returns:
        (B, 3, size, size) float32 in [0, 1].
    """
    who, view = spread(identity), spread(view)
    frame, window = Frame(0, 0, size), Window(0, 0, size, size)
    x, y = grid(view, frame, window)
    picture = background(view, x, y)  # (B, 3, H, W)
    head = stand(who, view, frame, window)
    for layer in (*BEHIND_HEAD, *HEAD):
        picture = layer(picture, head)
    return develop(picture, view)
