"""Measures after a training how like the person's photos and strangers look to the restorer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...degradation.presets import PRESETS as DEGRADATIONS
from ...degradation.second_order import degrade
from ...drawn.portraits import portrait_set
from ...identities.adapter import IdentityAdapter
from ...identities.likeness import LikenessScale
from ...pictures.views import random_view
from ...training.identity import VIEWS
from ..feedback import TrainingProgress
from ..patch.apply_identity import apply_identity
from ..patch.model import restorer_wrapper, set_identities
from ..restoring.likeness import Likeness
from .progress import Told
from .setup import Setup

LEVELS = ("medium", "extreme")  # in turn
_COUNT = 8  # views, and strangers
_FIRST_STRANGER = 7_000_000  # far from the people that trainings and evaluations draw
_OTHER_VIEWS = 0x5EED_0000  # keeps the views apart from those of the training


def likeness_scale(
    setup: Setup, adapter: IdentityAdapter, photos: Sequence[Tensor], told: Told
) -> LikenessScale | None:
    """Returns the ends of an adapter's scale, None where strangers are as like or memory lacks.

    Args:
        setup: of the training.
        adapter: as it was trained.
        photos: that it was trained on, (3, H, W) in [0, 1].
        told: of progress, whose interruption goes on up.
    """
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        told.report(TrainingProgress("likeness", min(done, total), total))

    pictures = torch.cat([*_views(setup, photos), *_strangers(setup)])  # (2 N, 3, size, size)
    total = 2 * 2 * 2  # batches, of the base and the adapter, under two noises
    # as in a node: the host moves the model's weights, see `from_model.decoded`
    with torch.inference_mode():
        model = apply_identity(set_identities(setup.model, []), adapter)
        (identity,) = restorer_wrapper(model).identities
        likeness = Likeness(model, setup.vae, pictures, on_batch=tell).of(identity)
    own, strangers = (float(part.mean()) for part in likeness.chunk(2))
    try:
        return LikenessScale(round(own, 4), round(strangers, 4))
    except ValueError:
        told.warn(
            "The adapter does not tell the person from strangers, so that nobody can be found by "
            "it; train longer, or with better photos."
        )
        return None


def _views(setup: Setup, photos: Sequence[Tensor]) -> list[Tensor]:
    found = []
    for k in range(_COUNT):
        generator = torch.Generator().manual_seed(_OTHER_VIEWS + k)
        view = random_view(photos[k % len(photos)], setup.size, VIEWS, generator)[None]
        found.append(degrade(view, DEGRADATIONS[LEVELS[k % 2]], generator))
    return found


def _strangers(setup: Setup) -> list[Tensor]:
    found = []
    for k in range(_COUNT):
        portrait = portrait_set(_FIRST_STRANGER + k, 1, seed=k, size=setup.size)
        generator = torch.Generator().manual_seed(k)
        found.append(degrade(portrait, DEGRADATIONS[LEVELS[k % 2]], generator))
    return found
