"""Training of the mini embedding on procedural portraits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..degradation.presets import PRESETS
from ..drawn.painting import draw
from ..drawn.portraits import sample_identities, sample_views
from .loop import Objective
from .pool import WeightedDegradations, degrade_mixed

Draw = Callable[[dict[str, Tensor], dict[str, Tensor], int], Tensor]

FIRST_IDENTITY = 100_000  # its training draws persons from here on, to 199,999
DEGRADATIONS: WeightedDegradations = [(0.5, PRESETS["light"]), (0.5, PRESETS["medium"])]
_TINT = 0.06  # largest change of a colour channel's factor
_FADE = 0.08  # largest change of contrast
_BRIGHTER = 0.04  # largest change of brightness
_SHIFT = 4  # pixels, largest


def portrait_album(
    persons: int, views: int, generator: torch.Generator, *, size: int = 128, draw: Draw = draw
) -> Tensor:
    """Renders views of persons, half of each degraded lightly or medium.

    The embedding shall follow the person and not the sharpness of the picture.

    Args:
        persons: how many; their numbers begin at `FIRST_IDENTITY`.
        views: pictures of each.
        generator: what views and degradations are drawn with.
        size: height and width of the pictures in pixels.
        draw: the renderer; pass `torch.compile(painting.draw)` for speed.

    Returns:
        (persons, views, 3, size, size) uint8.
    """
    album = []
    for number in range(FIRST_IDENTITY, FIRST_IDENTITY + persons):
        people = sample_identities([number] * views)
        with torch.no_grad():
            images = draw(people.values, sample_views(views, generator).values, size)
        half = torch.randperm(views, generator=generator)[: views // 2]
        images[half] = degrade_mixed(images[half], DEGRADATIONS, generator)
        album.append((images.clamp(0, 1) * 255).round().byte())
    return torch.stack(album)


def embedding_objective(
    album: Tensor, batch: int, steps: int, *, temperature: float = 0.1, margin: float = 0.2
) -> Objective:
    """Contrastive loss: each picture shall find the other one of its person in the batch.

    Args:
        album: see `portrait_album`.
        batch: persons per step, two pictures of each.
        steps: of the whole training; the margin grows over the first half.
        temperature: of the softmax over cosines.
        margin: how much nearer than others the own person's picture must be, at last.

    Source: InfoNCE (arXiv 1807.03748), equation 4, both ways as in CLIP (arXiv 2103.00020); the
        margin is CosFace's (arXiv 1801.09414), equation 4.
    """
    persons, views = album.shape[:2]
    done = 0

    def objective(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal done
        chosen = torch.randperm(persons, generator=generator)[:batch]
        pair = torch.rand(batch, views, generator=generator).argsort(1)[:, :2]  # (batch, 2)
        images = album[chosen[:, None], pair].transpose(0, 1).flatten(0, 1)  # (2 batch, 3, H, W)
        images = _shifted(vary_colours(images.float() / 255, generator), generator)
        first, second = model(images).chunk(2)  # (batch, D) each
        cosine = first @ second.T  # (batch, batch)
        own = torch.arange(batch)
        grown = margin * min(1.0, 2 * done / steps)
        logits = (cosine - grown * torch.eye(batch)) / temperature
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        done += 1
        return loss, {"rank_1": (cosine.detach().argmax(1) == own).float().mean()}

    return objective


def vary_colours(images: Tensor, generator: torch.Generator) -> Tensor:
    """Changes contrast, brightness and tint of (B, 3, H, W) pictures in [0, 1] a little."""
    shape = (len(images), 1, 1, 1)

    def between(limit: float, shape: Sequence[int]) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * limit

    tint = 1 + between(_TINT, (len(images), 3, 1, 1))
    contrast, brightness = 1 + between(_FADE, shape), between(_BRIGHTER, shape)
    return (((images * tint) - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    places = torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=generator).tolist()
    return images.roll(places, (2, 3))
