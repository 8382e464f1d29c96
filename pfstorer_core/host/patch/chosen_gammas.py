"""Chooses the gamma of identities from the picture that they shall restore."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ...identities.automatic_gamma import gamma_for
from ...pictures.detail import degradation_level
from .applied import AUTO
from .masks import fitted_mask
from .model import restorer_wrapper, set_identities

_LQ_IMAGE = "pfstorer_lq_image"  # attachment of a MODEL that is conditioned on an LQ image


def with_lq_image(model: Any, images: Tensor | None) -> Any:
    """Returns a restorer's MODEL that knows the LQ images which it is conditioned on.

    Identities of gamma "auto" have one for each of them, whether they come before or after.

    Args:
        model: a restorer's MODEL; stays as it is.
        images: (B, 3, H, W) in [0, 1], at the size at which they are restored; None makes the MODEL
            forget others.
    """
    model = model.clone()
    model.set_attachments(_LQ_IMAGE, images)
    return choose_gammas(model, images)


def known_image(model: Any) -> Tensor | None:
    """Returns the LQ images (B, 3, H, W) that `with_lq_image` gave a MODEL."""
    images: Tensor | None = model.get_attachment(_LQ_IMAGE)
    return images


def choose_gammas(model: Any, images: Tensor | None) -> Any:
    """Returns a restorer's MODEL whose identities of gamma "auto" have one for each picture.

    Args:
        model: a restorer's MODEL; stays as it is.
        images: as for `with_lq_image`; None leaves them without any.
    """
    identities = restorer_wrapper(model).identities
    if all(identity.strength != AUTO for identity in identities):
        return model
    chosen = []
    for identity in identities:
        if identity.strength == AUTO:
            gammas = None
            if images is not None:
                shape = len(images), 1, images.shape[2], images.shape[3]
                weight = None if identity.mask is None else fitted_mask(identity.mask, shape)
                gammas = gamma_for(degradation_level(images, weight))  # (B,)
            identity = dataclasses.replace(identity, gammas=gammas)
        chosen.append(identity)
    return set_identities(model, chosen)


def gamma_report(model: Any) -> list[str]:
    """Says for each identity of gamma "auto" what was chosen; one line each."""
    lines = []
    for number, identity in enumerate(restorer_wrapper(model).identities, 1):
        if identity.gammas is not None:
            name = identity.adapter.person
            lines.append(f"Identity {number} ({name}): gamma {identity.gamma_text}")
    return lines
