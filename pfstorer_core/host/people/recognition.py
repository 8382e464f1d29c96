"""What a face recognition network says of heads, where the user has one and photos of the people.

Nothing of the photos is kept: an adapter's file holds no embedding, which would be biometric data.
"""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management as mm
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


class Recognition:
    """A face recognition network and what it knows of people from photos of them.

    Args:
        judge: the network, and what finds faces for it; without a network nothing is said.
        photos: of each adapter's person, (3, H, W) in [0, 1]; none for who has none.

    Raises:
        InterruptProcessingException: the user stopped the prompt.
    """

    def __init__(self, judge: Judge, photos: Sequence[Sequence[Tensor]]):
        self._judge = judge
        self._known = [self._rows(given) for given in photos]  # (N, D) each
        self._given = [len(given) > 0 for given in photos]

    def lines(self, names: Sequence[str]) -> list[str]:
        """Returns what a report says of it; names are of the adapters."""
        if self._judge.missing:
            return [f"Face recognition is left out: {self._judge.missing}"]
        if not any(self._given):
            return [
                "Face recognition has nothing to compare with; connect photos of the people, or "
                "choose none."
            ]
        seen = [name for name, rows in zip(names, self._known, strict=True) if len(rows)]
        lines = [f"Face recognition has photos of {', '.join(seen)}"] if seen else []
        blind = [
            name
            for name, given, rows in zip(names, self._given, self._known, strict=True)
            if given and not len(rows)
        ]
        if blind:
            lines.append(
                f"Face recognition found no face in the photos of {', '.join(blind)}; choose photos"
                " of the face, and larger ones."
            )
        return lines

    def evidence(self, image: Tensor, heads: Sequence[FoundHead]) -> Tensor:
        """Returns log-likelihood ratios (F, A) in nats.

        0 for people of whom there is no photo; NaN for heads in which no face is found.

        Args:
            image: (1, 3, H, W) in [0, 1].
            heads: of the image.

        Raises:
            InterruptProcessingException: the user stopped the prompt.
        """
        evidence = torch.zeros(len(heads), len(self._known))
        people = [k for k, rows in enumerate(self._known) if len(rows)]
        if not people:
            return evidence
        known = [self._known[k] for k in people]
        usual = usual_similarities(known)
        for k, head in enumerate(heads):
            rows = self._rows([head_picture(image, head, _SIZE)[0]])
            if len(rows):
                similarity = torch.stack([(rows @ person.T).mean() for person in known])
                evidence[k, people] = evidence_of(similarity[None], usual)[0]
            else:
                evidence[k] = torch.nan
        return evidence

    def _rows(self, pictures: Sequence[Tensor]) -> Tensor:
        """Returns embeddings (N, D) of the pictures (3, H, W) in which there is a face."""
        embedding = self._judge.embedding
        rows = []
        for picture in pictures:
            mm.throw_exception_if_processing_interrupted()
            face: Tensor | None = picture
            if self._judge.find_faces is not None:
                points = self._judge.find_faces(picture)
                face = aligned_face(picture, points[0]) if points else None
            if embedding is not None and face is not None:
                rows.append(embedding.embed(face[None].clamp(0, 1)))
        return torch.cat(rows) if rows else torch.zeros(0, 1)


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


def usual_similarities(known: Sequence[Tensor]) -> tuple[float, float]:
    """Returns the mean cosine within and between people, of embeddings (N, D) of each."""
    pairs = [(rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)] for rows in known]
    within = torch.cat(pairs)
    across = [
        (rows @ others.T).flatten() for k, rows in enumerate(known) for others in known[k + 1 :]
    ]
    between = torch.cat(across) if across else torch.tensor([_BETWEEN])
    return float(within.mean()) if len(within) else _WITHIN, float(between.mean())
