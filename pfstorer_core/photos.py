"""Photos on disk, for training."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from .errors import PFStorerError
from .views import ViewConfig, random_view

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class PhotoFolder:
    """The photos of a folder and its subfolders, read when they are needed.

    Args:
        folder: where the photos lie.
        size: side of the views drawn from them, in pixels.
        views: how views are drawn.

    Raises:
        PFStorerError: no photo there, or a file that is no picture or too small; the file is named.
    """

    def __init__(self, folder: Path, size: int, views: ViewConfig | None = None):
        if not folder.is_dir():
            raise PFStorerError(f"There is no folder '{folder}'; give one with photos in it.")
        self.size, self.views = size, views or ViewConfig()
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
        if not self.paths:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise PFStorerError(f"The folder '{folder}' holds no photo; put {kinds} files into it.")
        smallest = self.views.min_photo * size
        for path in self.paths:
            with _open(path) as photo:
                if min(photo.size) < smallest:
                    raise PFStorerError(
                        f"Photo '{path.name}' has {photo.width} x {photo.height} pixels; views "
                        f"of {size} need a short side of at least {round(smallest)}."
                    )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` views of random photos: (count, 3, size, size) in [0, 1]."""
        index = torch.randint(len(self.paths), (count,), generator=generator).tolist()
        return torch.stack(
            [
                random_view(load_photo(self.paths[k]), self.size, self.views, generator)
                for k in index
            ]
        )


def load_photo(path: Path) -> Tensor:
    """A picture file, turned upright, as (3, H, W) in [0, 1].

    Raises:
        PFStorerError: the file is no picture.
    """
    with _open(path) as photo:
        try:
            upright = ImageOps.exif_transpose(photo).convert("RGB")
        except (OSError, SyntaxError) as error:
            raise PFStorerError(
                f"Photo '{path.name}' is damaged ({error}); replace or remove it."
            ) from error
    return pil_to_tensor(upright).float() / 255


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise PFStorerError(
            f"'{path.name}' is no picture that can be read; replace or remove it."
        ) from error
