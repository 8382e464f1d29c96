"""What the measurements of tiles share: restorer, people with their adapters, judges."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.measures.similarity import IdentityEmbedding, identity_similarity, load_embedding
from pfstorer_core.pictures.resizing import resize_bicubic

from .adapters import FULL, VARIANTS
from .bench import Bench, Judge, gather_people
from .people import Person
from .recognition import load_recognition

TRAINED = 128  # pixels: side of the mini restorer's pictures
FRAME = 160  # pixels: side of the square that a person of a group takes


class Trial:
    """The restorer, people with their adapters, and who judges their pictures.

    Args:
        options: of `parse`.

    Raises:
        PFStorerError: a file, a photo or a face is missing.
    """

    def __init__(self, options: argparse.Namespace):
        self.out: Path = options.out
        self.steps: int = options.steps
        self.bench = Bench(options)
        self.people = gather_people(options, {FULL: VARIANTS[FULL]})
        self.networks = [load_recognition(name) for name in options.recognition or [None]]
        judge = Judge(self.networks)
        self.measures = [judge.measures(person) for person in self.people]
        self.embedding: IdentityEmbedding = load_embedding()

    def adapter(self, person: Person) -> IdentityAdapter:
        """Returns a person's adapter, trained now if it is not there."""
        return self.bench.adapter(person, VARIANTS[FULL])

    def personalized(self, model: Any, person: Person, mask: Tensor | None = None) -> Any:
        """Returns a MODEL that restores a person as well."""
        from pfstorer_core.host import apply_identity

        return apply_identity(model, self.adapter(person), mask=mask)

    def restore(self, model: Any, lq: Tensor, **settings: Any) -> Tensor:
        """Restores pictures (B, 3, H, W) in [0, 1]."""
        from pfstorer_core.host import restore

        settings = {"steps": self.steps, "color_fix": "none", **settings}
        return restore(model, self.bench.vae, lq.movedim(1, -1), **settings).movedim(-1, 1)

    def similarity(self, picture: Tensor, person: Person) -> float:
        """Returns the mean similarity of pictures (B, 3, H, W) to a drawn person's references."""
        small = resize_bicubic(picture.contiguous(), (TRAINED, TRAINED))
        return float(identity_similarity(self.embedding, small, person.references).mean())
