"""Measures drawn group photos whose people are found and matched, against their true masks.

    python tools/evaluate_groups.py --photos-of-groups 6

Runs in ComfyUI's environment (scripts/setup_host.py makes one). Takes the options of
tools/evaluate.py as well; people, adapters and their cache are the same. Three of the people at a
time are drawn side by side and degraded, found by the bundled detector and told apart as Restore
People does. Each photo is restored three times: with the true masks, with the masks of the heads
that were found and the true names, and with what was matched. Similarity is the mean cosine of the
bundled embedding between a person's part of the picture and the clean one; intervals are 95%
bootstraps over the photos.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import repository  # noqa: F401
import torch
from evaluate import extending_parser, parse_options
from evaluation.adapters import FULL, VARIANTS
from evaluation.bench import Bench, gather_people
from evaluation.people import derive_seed
from evaluation.tables import LEVELS, interval_text, markdown_table
from in_process import use_comfyui
from torch import Tensor

from pfstorer_core.degradation.presets import PRESETS as DEGRADATIONS
from pfstorer_core.drawn.groups import GroupPhoto, degrade_people, group_photo
from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.measures.intervals import clustered_interval
from pfstorer_core.measures.similarity import load_embedding
from pfstorer_core.people.detector import load_head_finder
from pfstorer_core.people.found import FoundHead

SIZE = (160, 400)  # height and width of a photo in px
TOGETHER = 3  # people in a photo
TRUE, FOUND, MATCHED = "true masks", "found masks", "found and matched"


@dataclass(frozen=True)
class Outcome:
    """One person of a photo.

    Attributes:
        similarity: by TRUE, FOUND and MATCHED.
        found: whether the detector found the head.
        given: "right", "wrong" or "nobody".
    """

    similarity: dict[str, float]
    found: bool
    given: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures each level and prints a table."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui(progress_bars=False)
    try:
        trial = Trial(options)
        rows = [row_of(level, trial.outcomes(level)) for level in options.levels]
    except PFStorerError as error:
        sys.exit(f"error: {error}")
    header = ["degradation", "heads", "found", "right", "wrong", f"similarity, {TRUE}"]
    print(markdown_table([*header, f"{FOUND} - true", f"{MATCHED} - true"], rows))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line: the options of tools/evaluate.py, and a few of its own."""
    parser = extending_parser(__doc__)
    parser.add_argument("--photos-of-groups", type=int, default=6, help="at each level")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    chosen, others = parser.parse_known_args(arguments)
    options = parse_options(others)
    if options.people or options.pairs:
        parser.error("groups are of drawn people; leave out --people and --pairs")
    for name, value in vars(chosen).items():
        setattr(options, name, value)
    return options


class Trial:
    """The restorer and drawn people with their adapters.

    Args:
        options: of `parse`.

    Raises:
        PFStorerError: a file is missing, or fewer than `TOGETHER` people are asked for.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.bench = Bench(options)
        self.people = gather_people(options, {FULL: VARIANTS[FULL]})
        if len(self.people) < TOGETHER:
            raise PFStorerError(f"Groups are of {TOGETHER} people; give --count {TOGETHER}.")
        self.adapters = [self.bench.adapter(person, VARIANTS[FULL]) for person in self.people]
        self.finder = load_head_finder()
        self.embedding = load_embedding()

    def outcomes(self, level: str) -> list[Outcome]:
        """Returns what became of all people of the photos of a level."""
        found = []
        for number in range(self.options.photos_of_groups):
            found += self._photo(level, number)
            logging.info("%s: photo %d", level, number)
        return found

    def _photo(self, level: str, number: int) -> list[Outcome]:
        from evaluation.scenes import paired_finds

        from pfstorer_core.host.people.evidence import match_people

        seed = derive_seed(self.options.seed, level, number)
        generator = torch.Generator().manual_seed(seed)
        who = torch.randperm(len(self.people), generator=generator)[:TOGETHER].tolist()
        adapters = [self.adapters[k] for k in who]
        clean = group_photo([int(self.people[k].name) for k in who], *SIZE, seed)
        frame = clean.frames[0][2]
        lq = degrade_people(clean.picture, frame, DEGRADATIONS[level], generator)
        truth = [head_of(mask) for mask in clean.masks]
        finds = self.finder(lq[0])
        own = paired_finds(finds, truth)
        model, vae = self.bench.model, self.bench.vae
        with torch.inference_mode():
            matches = match_people(model, vae, lq, finds, adapters)
        chosen = [None if m.adapter is None else adapters[m.adapter] for m in matches]
        nothing = torch.zeros(SIZE)
        masks = [nothing if find is None else finds[find].full_mask(SIZE) for find in own]
        ways = {
            TRUE: list(zip(adapters, clean.masks, strict=True)),
            FOUND: list(zip(adapters, masks, strict=True)),
            MATCHED: [
                (adapter, head.full_mask(SIZE))
                for adapter, head in zip(chosen, finds, strict=True)
                if adapter is not None
            ],
        }
        similarity = {
            way: self._similarities(clean, self._restored(lq, people, seed))
            for way, people in ways.items()
        }
        outcomes = []
        for k, find in enumerate(own):
            given = None if find is None else chosen[find]
            word = "nobody" if given is None else "right" if given is adapters[k] else "wrong"
            values = {way: found[k] for way, found in similarity.items()}
            outcomes.append(Outcome(values, find is not None, word))
        return outcomes

    def _restored(
        self, lq: Tensor, people: Sequence[tuple[IdentityAdapter, Tensor]], seed: int
    ) -> Tensor:
        from pfstorer_core.host import apply_identity

        model = self.bench.model
        for adapter, mask in people:
            model = apply_identity(model, adapter, 1.0, mask[None])
        return self.bench.restore(model, lq, seed)

    def _similarities(self, clean: GroupPhoto, restored: Tensor) -> list[float]:
        """Returns the cosine of each person's frame to the clean one."""
        parts = [
            torch.cat([p[..., y : y + side, x : x + side] for p in (clean.picture, restored)])
            for y, x, side in clean.frames
        ]
        rows = [self.embedding.embed(part.clamp(0, 1)) for part in parts]
        return [float(one @ other) for one, other in rows]


def head_of(mask: Tensor) -> FoundHead:
    """Returns the head (H, W) of a mask of a picture."""
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    return FoundHead((left, top, right, bottom), mask[top:bottom, left:right])


def row_of(level: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a row of the table."""
    true = torch.tensor([x.similarity[TRUE] for x in outcomes])
    cells = [level, str(len(outcomes)), str(sum(x.found for x in outcomes))]
    cells += [str(sum(x.given == word for x in outcomes)) for word in ("right", "wrong")]
    cells.append(f"{float(true.mean()):.3f}")
    for way in (FOUND, MATCHED):
        change = torch.tensor([x.similarity[way] for x in outcomes]) - true
        text = interval_text(clustered_interval(change.view(-1, TOGETHER)), sign=True)
        cells.append(f"{text}, at worst {float(change.min()):+.3f}")
    return cells


if __name__ == "__main__":
    main()
