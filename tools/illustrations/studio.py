"""Who is in the pictures, and what restores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from evaluate import parse_options
from evaluation.adapters import FULL, VARIANTS
from evaluation.bench import Bench, gather_people
from evaluation.people import Person, derive_seed
from torch import Tensor

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.groups import GroupPhoto, degrade_people, group_photo

from .photo import astronaut, portrait
from .sheets import Cell, Rows

SIZE = 128  # pixels: side of the mini restorer's pictures
ROUND_GLASSES, DARK_GLASSES, NO_GLASSES = 0, 1, 2  # places of people among the evaluation's
PHOTO = -1  # in place of a drawn person: a photo of a real one, who has no adapter

Case = tuple[int, str, int]  # person, degradation, number of the picture


class Studio:
    """The mini restorer, drawn people and their adapters, of quick trainings.

    Args:
        adapters: folder in which adapters are kept.
    """

    def __init__(self, adapters: Path) -> None:
        self.quick, self.standard = (self._bench(adapters, name) for name in ("quick", "standard"))
        self.people = gather_people(self.quick.options, {FULL: VARIANTS[FULL]})

    @staticmethod
    def _bench(adapters: Path, preset: str) -> Bench:
        bench = Bench(parse_options(["--preset", preset]))
        bench.cache.folder = adapters
        return bench

    @property
    def base(self) -> Any:
        """The MODEL without an adapter."""
        return self.quick.model

    def personalized(
        self,
        person: int,
        model: Any = None,
        *,
        bench: Bench | None = None,
        variant: str = FULL,
        **settings: Any,
    ) -> Any:
        """Returns a MODEL that restores a person as well.

        Args:
            person: place among the people.
            model: what it is added to; the base if None.
            bench: whose preset the adapter is trained with; the quick one if None.
            variant: of the method.
            **settings: of the node.
        """
        from pfstorer_core.host import apply_identity

        adapter = (bench or self.quick).adapter(self.people[person], VARIANTS[variant])
        return apply_identity(model or self.base, adapter, **settings)

    def restore(self, model: Any, lq: Tensor, **settings: Any) -> Tensor:
        """Restores a picture (3, H, W); without colour fix unless settings say otherwise."""
        from pfstorer_core.host import restore

        settings = {"steps": 8, "color_fix": "none", **settings}
        image = lq.movedim(0, -1)[None]  # (1, H, W, 3)
        return restore(model, self.quick.vae, image, **settings)[0].movedim(-1, 0)

    def spoilt(self, person: int, level: str, picture: int = 0) -> tuple[Tensor, Tensor]:
        """Returns a held-out picture of a person, (3, H, W), degraded and clean."""
        if person == PHOTO:
            name, clean = "astronaut", portrait(astronaut(), SIZE)
        else:
            who: Person = self.people[person]
            name, clean = who.name, who.clean[picture]
        generator = torch.Generator().manual_seed(derive_seed("help", name, level, picture))
        return degrade(clean[None], PRESETS[level], generator)[0], clean

    def group(self, level: str) -> tuple[Tensor, GroupPhoto]:
        """Returns a degraded photo (3, H, W) of the first three people, and the clean one."""
        photo = group_photo([int(p.name) for p in self.people[:3]], 192, 480, 3)
        generator = torch.Generator().manual_seed(3)
        return degrade_people(photo.picture, 160, PRESETS[level], generator)[0], photo


def compared(
    studio: Studio, cases: Sequence[Case], ways: Callable[[int, Tensor], list[Cell]]
) -> tuple[Rows, int]:
    """Returns a row for each case: the LQ picture, what `ways` makes of it, and the truth.

    Args:
        studio: people and restorer.
        cases: person or `PHOTO`, degradation and number of the picture, of each row.
        ways: makes labelled pictures of a person's LQ picture.
    """
    rows = []
    for person, level, picture in cases:
        lq, clean = studio.spoilt(person, level, picture)
        rows.append([("LQ", lq), *ways(person, lq), ("truth", clean)])
    return rows, SIZE
