"""Pictures in which filters and degradations show, and photos of drawn people as files."""

from pathlib import Path

import torch
from torchvision.utils import save_image

from pfstorer_core.drawn.portraits import portrait_set


def picture(height: int = 128, width: int = 128) -> torch.Tensor:
    """A picture (3, H, W) with flat areas, soft shading, edges and fine detail."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    disc = torch.sigmoid(60.0 * (0.6 - torch.sqrt(x.square() + y.square())))
    stripes = 0.1 * torch.sin(40.0 * x * (1.2 + y)) * disc
    grey = 0.3 + 0.1 * x + 0.05 * y + 0.3 * disc + stripes
    return torch.stack([grey + 0.15 * disc, grey, grey - 0.1 * disc + 0.1 * y])


def portrait_folder(folder: Path, number: int, count: int, size: int = 96) -> Path:
    """Writes portraits of a drawn person as photos; the embedding of drawn people judges them."""
    folder.mkdir(parents=True)
    for k, photo in enumerate(portrait_set(number, count, seed=1, size=size)):
        save_image(photo, folder / f"{k}.png")
    return folder
