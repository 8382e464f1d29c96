"""Whose heads they are: what the restorer and a face recognition network say of each adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor

from ...degradation.inputs import checked_pictures
from ...errors import PFStorerError
from ...identities.adapter import IdentityAdapter
from ...people.found import FoundHead
from ...people.matching import Match, match, match_table, parse_choices
from ..base import base_of
from ..feedback import RestoreReport
from ..patch.applied import check_identity_fit
from ..patch.apply_identity import apply_identity
from ..patch.model import restorer_wrapper, set_identities
from ..restoring.likeness import Likeness
from ..restoring.person_check import head_picture, scale_of
from .recognition import Recognition

# Logistic regression on photos of four real people, medium and extreme, as found by the bundled
# detector, and of strangers: nats for the relative likeness and a constant; and where there are
# other adapters, for how far the likeness is above their mean, which takes out what all adapters
# know of such a photo. That constant is 0.2 lower than fitted, for 2% of wrong adapters at medium.
_ALONE = (15.7, -4.7)
_AMONG = (10.0, 18.2, -5.1)
# Factors on the boxes of heads. Those that are found are up to 8% too large where the picture is
# extremely degraded, and the mean of two framings is less often wrong.
_FRAMINGS = (1.0, 0.85)


def match_people(
    model: Any,
    vae: Any,
    image: Tensor,
    heads: Sequence[FoundHead],
    adapters: Sequence[IdentityAdapter],
    *,
    choices: str = "",
    first: int = 1,
    recognition: Recognition | None = None,
    report: RestoreReport | None = None,
) -> list[Match]:
    """Returns whose each head of a picture is, at most one head for each adapter.

    Args:
        model: MODEL of `load_base_restorer`, which all adapters were trained on.
        vae: its VAE.
        image: (1, 3, H, W) in [0, 1], as it is before the restoration.
        heads: of the picture.
        adapters: of people who may be in it.
        choices: what the user knows better, see `people.matching.parse_choices`.
        first: number of the first of these heads, in choices and report.
        recognition: a face recognition network, with photos of the adapters' people in their
            order, whose word is added; None does without.
        report: gets the table of heads and adapters, and what is doubtful.

    Raises:
        PFStorerError: choices that cannot be read, an adapter of another base, or one of which it
            is not known how its person looks to this base.
        InterruptProcessingException: the user stopped the prompt.
    """
    names = [adapter.person for adapter in adapters]
    chosen = parse_choices(choices, names, len(heads), first)
    image = checked_pictures(image)
    evidence = torch.full((len(heads), len(adapters)), torch.nan)
    faceless: list[str] = []
    asked = [k for k in range(len(heads)) if k not in chosen]
    if asked and adapters:
        shown = [heads[k] for k in asked]
        evidence[asked] = evidence_of(likenesses(model, vae, image, shown, adapters, report))
        if recognition is not None:
            said = recognition.evidence(image, shown)
            evidence[asked] += said.nan_to_num(0.0)
            faceless = [
                str(first + k) for k, row in zip(asked, said, strict=True) if row.isnan().any()
            ]
    found = match(evidence, chosen)
    if report is not None:
        report.add(match_table(found, names, first))
        if faceless:
            report.line(f"Face recognition found no face in: {', '.join(faceless)}")
    return found


def evidence_of(likeness: Tensor) -> Tensor:
    """Returns log-likelihood ratios (F, A), in nats, for relative likenesses (F, A).

    They say "this adapter's person" against "somebody else".
    """
    others = (~likeness.isnan()).sum(1, keepdim=True) - 1
    mean = (likeness.nansum(1, keepdim=True) - likeness) / others.clamp(min=1)
    among = _AMONG[0] * likeness + _AMONG[1] * (likeness - mean) + _AMONG[2]
    return torch.where(others > 0, among, _ALONE[0] * likeness + _ALONE[1])


@torch.no_grad()
def likenesses(
    model: Any,
    vae: Any,
    image: Tensor,
    heads: Sequence[FoundHead],
    adapters: Sequence[IdentityAdapter],
    report: RestoreReport | None = None,
) -> Tensor:
    """Returns how like the heads of an image (1, 3, H, W) are to the adapters' people, (F, A).

    0 is strangers, 1 the photos of the training; NaN where memory is too short for one head, and
    for adapters that change nothing. The report shows which adapter is looked for.

    Raises:
        PFStorerError: see `match_people`.
    """
    base = base_of(model)
    scales = []
    for adapter in adapters:
        scales.append(scale := scale_of(adapter.info, base))
        if scale is None:
            raise PFStorerError(
                f"Identity adapter '{adapter.info.name}' does not know how its person looks to "
                f"restorer '{base.info.name}', because it was trained before PFStorer measured "
                "it; train it again, or say who is who yourself."
            )
        check_identity_fit(model.model.diffusion_model, adapter, base)
    plain = set_identities(model, [])
    size = base.trained_size
    faces = torch.cat([head_picture(image, head, size, f) for f in _FRAMINGS for head in heads])
    bar = comfy.utils.ProgressBar(len(adapters))
    looking = Likeness(model, vae, faces, on_batch=mm.throw_exception_if_processing_interrupted)
    columns = []
    for number, (adapter, scale) in enumerate(zip(adapters, scales, strict=True), 1):
        if report is not None:
            report.status(
                f"looking whose heads they are: {len(heads)} heads, adapter {number} of "
                f"{len(adapters)}"
            )
        (identity,) = restorer_wrapper(apply_identity(plain, adapter)).identities
        assert scale is not None
        relative = scale.relative(looking.of(identity))  # (framings * F,)
        columns.append(relative.view(len(_FRAMINGS), -1).mean(0))
        bar.update(1)
    return torch.stack(columns, 1)
