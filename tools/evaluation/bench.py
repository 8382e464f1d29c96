"""What an evaluation restores with, and who judges the pictures."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.training.identity import PRESETS, IdentityTrainingConfig

from .adapters import FULL, VARIANTS, AdapterCache, Cost, Variant, file_digest
from .face_measures import FaceMeasures
from .faces import Face, FaceFinder
from .people import Person, paired_people, photographed_people, procedural_person, square
from .recognition import Recognition
from .sampling import restore_pictures, sampling_settings

GIVEN_REFERENCES = 3  # photos given at inference, by the variants that give any


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to restore.

    Args:
        kind: its name in tables.
        variant: key of VARIANTS; None restores without an adapter.
        gamma: strength of the adapter.
        wrong: take the next person's adapter.
    """

    kind: str
    variant: str | None = FULL
    gamma: float = 1.0
    wrong: bool = False


def gather_people(options: argparse.Namespace, variants: dict[str, Variant]) -> list[Person]:
    """Returns the people to measure on, with the photos of the greediest variant."""
    counts = {
        "photos": max(options.train_photos, *(v.photos or 0 for v in variants.values()), 0),
        "references": options.references,
        "pictures": options.pictures,
        "size": options.size,
        "seed": options.seed,
    }
    if options.people or options.pairs:
        del counts["references"]
        if options.people:
            people = photographed_people(options.people, **counts)
        else:
            people = paired_people(options.pairs, photos=counts["photos"], size=options.size)
        chosen = [p for p in people if p.name in (options.only or [p.name])]
        if not chosen:
            names = ", ".join(person.name for person in people)
            raise PFStorerError(f"--only names none of the people there are; choose of {names}.")
        return chosen
    numbers = options.identities or range(options.first, options.first + options.count)
    return [procedural_person(number, **counts) for number in numbers]


class Bench:
    """The base restorer and the adapters trained on it.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace):
        from pfstorer_core.host.load.folders import MINI_RESTORER_PATH
        from pfstorer_core.host.load.restorer import load_base_restorer

        self.options = options
        files = [options.restorer or MINI_RESTORER_PATH, options.checkpoint]
        self.model, _, self.vae = load_base_restorer(*files)
        changes: dict[str, Any] = {"seed": options.seed, "preview_every": 0}
        if options.training_steps:
            changes["steps"] = options.training_steps
        self.config = dataclasses.replace(PRESETS[options.preset], **changes)
        self.cache = AdapterCache(options.out / "adapters", file_digest(*files), self._train)

    def adapter(self, person: Person, variant: Variant) -> IdentityAdapter:
        """Returns a person's adapter, trained now if it is not there."""
        photos = self._photos(person, variant)
        return self.cache.get(person.name, photos, variant.config(self.config))

    def personalized(self, case: Case, person: Person, following: Person) -> Any:
        """Returns the MODEL that a case restores a person's pictures with."""
        from pfstorer_core.host import apply_identity

        if case.variant is None:
            return self.model
        variant = VARIANTS[case.variant]
        owner = following if case.wrong else person
        references = None
        if variant.references:
            photos = self._photos(owner, variant)[:GIVEN_REFERENCES]
            squares = [square(photo[0].movedim(-1, 0), self.options.size) for photo in photos]
            references = self.vae.encode(torch.stack(squares).movedim(1, -1))  # (R, C, h, w)
        adapter = self.adapter(owner, variant)
        return apply_identity(self.model, adapter, case.gamma, references=references)

    def restore(self, model: Any, lq: Tensor, seed: int) -> Tensor:
        """Restores pictures (B, 3, H, W) in [0, 1]."""
        settings = {**sampling_settings(self.options), "steps": self.options.steps, "seed": seed}
        return restore_pictures(model, self.vae, lq, **settings)

    def costs(self, people: Sequence[Person], variant: Variant) -> list[Cost]:
        """Returns what the people's adapters cost, those without a record left out."""
        config = variant.config(self.config)
        found = [self.cache.cost(p.name, self._photos(p, variant), config) for p in people]
        return [cost for cost in found if cost is not None]

    def training_summary(self, people: Sequence[Person]) -> str:
        """Returns a sentence on what the full method's adapters cost."""
        costs = self.costs(people, VARIANTS[FULL])
        if not costs:
            return "There is no record of what the adapters cost.\n"
        seconds = sorted(cost.seconds for cost in costs)
        mean = sum(seconds) / len(costs)
        pace = sum(cost.steps for cost in costs) / sum(seconds)
        threads = " or ".join(str(n) for n in sorted({cost.threads for cost in costs}))
        return (
            f"Preset {self.options.preset}, {self.config.steps} steps: {mean:.0f} s per adapter "
            f"({seconds[0]:.0f} to {seconds[-1]:.0f} for {len(costs)} people), "
            f"{pace:.1f} steps a second with all preparation, {threads} CPU threads.\n"
        )

    def _photos(self, person: Person, variant: Variant) -> list[Tensor]:
        return person.photos[: variant.photos or self.options.train_photos]

    def _train(
        self, photos: Sequence[Tensor], config: IdentityTrainingConfig, name: str
    ) -> IdentityAdapter:
        from pfstorer_core.host import train_identity

        return train_identity(self.model, self.vae, photos, config, name=name)


class Judge:
    """Knows whose face it is, by the chosen networks.

    Args:
        networks: the first is the one that decides.

    Raises:
        PFStorerError: dlib is needed and not installed.
    """

    def __init__(self, networks: Sequence[Recognition]):
        self.networks = networks
        self.finder = FaceFinder() if any(n.needs_faces for n in networks) else None

    def measures(self, person: Person) -> FaceMeasures:
        """Returns what measures the pictures of a person.

        Raises:
            PFStorerError: no face is found in a clean picture.
        """
        faces = self._faces(person.clean, person)
        found = FaceMeasures(self.networks, self.finder, person.clean, faces)
        references = person.references
        found.add_references(references, self._faces(references, person), person.compared)
        return found

    def _faces(self, pictures: Tensor, person: Person) -> list[Face]:
        if self.finder is None:
            return []
        found = [self.finder.find(picture) for picture in pictures]
        faces = [face for face in found if face is not None]
        if len(faces) < len(found):
            raise PFStorerError(
                f"No face is found in {len(found) - len(faces)} of {len(found)} clean pictures of "
                f"'{person.name}'; take out photos in which it is turned away, small or hidden."
            )
        return faces
