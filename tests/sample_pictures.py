"""Pictures in which filters and degradations show."""

import torch


def picture(height: int = 128, width: int = 128) -> torch.Tensor:
    """A picture (3, H, W) with flat areas, soft shading, edges and fine detail."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    disc = torch.sigmoid(60.0 * (0.6 - torch.sqrt(x.square() + y.square())))
    stripes = 0.1 * torch.sin(40.0 * x * (1.2 + y)) * disc
    grey = 0.3 + 0.1 * x + 0.05 * y + 0.3 * disc + stripes
    return torch.stack([grey + 0.15 * disc, grey, grey - 0.1 * disc + 0.1 * y])
