"""What a face recognition network says of heads, where the user has one and photos of the people.

Nothing of the photos is kept: an adapter's file holds no embedding, which would be biometric data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...measures.face_crops import aligned_face
from ...people.found import FoundHead
from ..measure.judge import Judge
from ..restoring.person_check import head_picture

_SIZE = 256  # px of a head in which a face is looked for
_WITHIN = 0.7  # cosine between photos of one person, where there is one photo
_BETWEEN = 0.0  # between people, where there is one person
# Nats for a similarity as high as that between photos of the person, times the similarity: where
# none is alike, as in extremely degraded pictures, such networks know nothing.
_WEIGHT = 12.0


def recognised(
    judge: Judge, photos: Sequence[Sequence[Tensor]], image: Tensor, heads: Sequence[FoundHead]
) -> Tensor:
    """Returns log-likelihood ratios (F, A) in nats; 0 where the network says nothing.

    Args:
        judge: the network, and what finds faces for it.
        photos: of each adapter's person, (3, H, W) in [0, 1]; none for who has none.
        image: (1, 3, H, W) in [0, 1].
        heads: of the image.
    """
    evidence = torch.zeros(len(heads), len(photos))
    if judge.embedding is None or not evidence.numel():
        return evidence
    known = [_rows(judge, given) for given in photos]
    people = [k for k, rows in enumerate(known) if len(rows)]
    if not people:
        return evidence
    usual = usual_similarities([known[k] for k in people])
    pictures = torch.cat([head_picture(image, head, _SIZE) for head in heads])
    for k, picture in enumerate(pictures):
        rows = _rows(judge, [picture])
        if len(rows):
            similarity = torch.stack([(rows @ known[p].T).mean() for p in people])
            evidence[k, people] = evidence_of(similarity[None], usual)[0]
    return evidence


def evidence_of(similarity: Tensor, usual: tuple[float, float]) -> Tensor:
    """Returns log-likelihood ratios (F, A) in nats.

    Args:
        similarity: (F, A) mean cosine of each head to each person's photos.
        usual: see `usual_similarities`.
    """
    within, between = usual
    relative = (similarity - between) / max(within - between, 0.1)
    others = torch.full_like(relative, 0.5)  # between a stranger and the person
    if relative.shape[1] > 1:
        others = (relative.sum(1, keepdim=True) - relative) / (relative.shape[1] - 1)
    known_at_all = relative.amax(1, keepdim=True).clamp(0, 1)
    return _WEIGHT * known_at_all * (relative - others)


def _rows(judge: Judge, pictures: Sequence[Tensor]) -> Tensor:
    """Returns embeddings (N, D) of those of the pictures (3, H, W) in which there is a face."""
    assert judge.embedding is not None
    faces = []
    for picture in pictures:
        if judge.find_faces is None:
            faces.append(picture)
        elif points := judge.find_faces(picture):
            faces.append(aligned_face(picture, points[0]))
    rows = [judge.embedding.embed(face[None].clamp(0, 1)) for face in faces]
    return torch.cat(rows) if rows else torch.zeros(0, 1)


def usual_similarities(known: Sequence[Tensor]) -> tuple[float, float]:
    """Returns the mean cosine within and between people, of embeddings (N, D) of each."""
    pairs = [(rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)] for rows in known]
    within = torch.cat(pairs)
    across = [
        (rows @ others.T).flatten() for k, rows in enumerate(known) for others in known[k + 1 :]
    ]
    between = torch.cat(across) if across else torch.tensor([_BETWEEN])
    return float(within.mean()) if len(within) else _WITHIN, float(between.mean())
