"""Measures how often Match People gives the faces of a picture to the right adapters.

    python tools/evaluate_people.py --people FOLDER --strangers FOLDER \\
        --recognition MobileFaceNet.tflite

Runs in ComfyUI's environment (scripts/setup_host.py makes one). Takes the options of
tools/evaluate.py as well; people, adapters and their cache are the same. Held-out photos of the
people and photos of strangers are set side by side, with heads of 48 to 128 px where they are
known, and degraded; the plugin then tells for each head and each adapter how like they are. From
these figures casts are drawn: 3 to 6 heads of different people, with and without strangers among
them, and the adapters that there are. A stranger is somebody of --strangers or one of the people
whose adapter is left out.

Shares are of the heads of all casts; intervals are percentile bootstraps over the photos that stand
behind them, each drawn with its people. "The network alone" gives the mean cosine of a face at its
true place to the training photos, through the same assignment; its limit is the one that is best
for it on these very photos, which flatters it. Chance assigns at random.

With --found the heads are those of the bundled detector in the scenes; of a head that it misses
nothing is known. With --whole scenes are degraded as wholes.

The figures are kept in OUT/people_LEVEL.pt: an interrupted run goes on with the next level, and
several processes may measure different --levels.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import repository  # noqa: F401
import torch
from evaluate import extending_parser, parse_options
from evaluation.adapters import FULL, VARIANTS
from evaluation.bench import Bench
from evaluation.faces import FaceFinder
from evaluation.people import derive_seed, photographed_people
from evaluation.recognition import load_recognition
from evaluation.tables import LEVELS, markdown_table
from in_process import use_comfyui
from torch import Tensor

from pfstorer_core.degradation.presets import PRESETS as DEGRADATIONS
from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.identities.likeness import LikenessScale
from pfstorer_core.people.detector import load_head_finder
from pfstorer_core.people.found import FoundHead
from pfstorer_core.people.matching import assign
from pfstorer_core.pictures.photos import list_photos

PHOTO_SIZE = 256  # px, of the held-out photos
SCENE_HEADS = 6
RESAMPLES = 200
OURS, NETWORK, CHANCE = "restorer", "recognition network alone", "chance"
BOTH = "restorer and network"
KNOWN, LEFT_OUT, STRANGER = "known", "left out", "stranger"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line: the options of tools/evaluate.py, and a few of its own."""
    parser = extending_parser(__doc__)
    add = parser.add_argument
    add("--strangers", type=Path, nargs="+", required=True, help="folders of photos")
    add("--most-strangers", type=int, default=32)
    add("--casts", type=int, default=1000, help="of a level, with and without strangers")
    add("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    add("--whole", action="store_true", help="degrade scenes as wholes: small heads lose most")
    add("--found", action="store_true", help="heads as the bundled detector finds them")
    add("--unseen", nargs="+", default=[], metavar="PERSON", help="shown apart as well")
    add("--time", action="store_true", help="measure the time of 8 heads and 8 adapters instead")
    chosen, others = parser.parse_known_args(arguments)
    options = parse_options([*others, "--size", str(PHOTO_SIZE)])
    if not options.people:
        parser.error("real people are needed: give --people")
    for name, value in vars(chosen).items():
        setattr(options, name, value)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what lacks, and prints the tables."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui(progress_bars=False)
    try:
        trial = Trial(options)
        print(trial.timed() if options.time else report(trial))
    except PFStorerError as error:
        sys.exit(f"error: {error}")


@dataclass
class Measured:
    """The heads of one level.

    Attributes:
        likeness: (N, A) see `host.people.evidence.likenesses`.
        cosines: (N, A) of the network.
        heights: (N,) of the heads in px.
        found: (N,) whether the heads were found; all are where their true places are taken.
        false_finds: () how many were found where there is no head.
    """

    likeness: Tensor
    cosines: Tensor
    heights: Tensor
    found: Tensor
    false_finds: Tensor


class Trial:
    """The restorer, people with their adapters, and photos in which there are heads.

    Args:
        options: of `parse`.

    Raises:
        PFStorerError: a file, a photo or a face is missing.
    """

    def __init__(self, options: argparse.Namespace):
        from evaluation.scenes import shots

        self.options = options
        self.network = load_recognition(options.recognition[0])
        self.bench = Bench(options)
        self.people = photographed_people(
            options.people,
            photos=options.train_photos,
            pictures=options.pictures,
            size=PHOTO_SIZE,
            seed=options.seed,
        )
        finder = FaceFinder()
        self.shots = [
            shot for k, p in enumerate(self.people) for shot in shots(list(p.clean), finder, k)
        ]
        found = list_photos(options.strangers, PHOTO_SIZE / 4)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(options.seed))
        chosen = [found[k].load() for k in order[: options.most_strangers]]
        self.shots += shots(chosen, finder, None)
        self.references = [
            shots([photo[0].movedim(-1, 0) for photo in p.photos], finder, None)
            for p in self.people
        ]
        self.adapters = self._adapters()

    def _adapters(self) -> list[IdentityAdapter]:
        """Returns everybody's adapter, with its scale where the file has none."""
        from pfstorer_core.host.train.likeness import likeness_scale
        from pfstorer_core.host.train.progress import Told
        from pfstorer_core.host.train.setup import set_up

        kept = self.options.out / "likeness.json"
        scales: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
        setup = set_up(self.bench.model, self.bench.vae, self.bench.config, logging.warning)
        found = []
        for person in self.people:
            adapter = self.bench.adapter(person, VARIANTS[FULL])
            scale = adapter.info.likeness
            if scale is None and person.name in scales:
                scale = LikenessScale(**scales[person.name])
            elif scale is None:
                photos = [photo[0].movedim(-1, 0) for photo in person.photos]
                scale = likeness_scale(setup, adapter, photos, Told(None, None))
                if scale is not None:
                    scales[person.name] = {"own": scale.own, "strangers": scale.strangers}
                    kept.write_text(json.dumps(scales))
            adapter.info = replace(adapter.info, likeness=scale)
            found.append(adapter)
        return found

    def measured(self, level: str) -> Measured:
        """Returns the figures of all heads at a level, measured now if they are not there."""
        from evaluation.scenes import scene

        from pfstorer_core.host.people.evidence import likenesses

        ways = [name for name in ("whole", "found") if getattr(self.options, name)]
        kept = self.options.out / f"{'_'.join(['people', level, *ways])}.pt"
        if kept.is_file():
            return Measured(**torch.load(kept, weights_only=True))
        generator = torch.Generator().manual_seed(derive_seed(self.options.seed, level))
        order = torch.randperm(len(self.shots), generator=generator)
        count = len(self.shots), len(self.people)
        found = Measured(
            torch.full(count, torch.nan),
            torch.zeros(count),
            torch.zeros(count[0]),
            torch.ones(count[0], dtype=torch.bool),
            torch.tensor(0),
        )
        for part in order.split(SCENE_HEADS):
            cast = [self.shots[k] for k in part]
            shown = scene(cast, DEGRADATIONS[level], generator, self.options.whole)
            heads: list[FoundHead | None] = list(shown.heads)
            if self.options.found:
                heads, others = shown.found_by(load_head_finder())
                found.false_finds += others
            found.found[part] = torch.tensor([head is not None for head in heads])
            there = part[found.found[part]]
            if len(there):
                model, vae = self.bench.model, self.bench.vae
                with torch.inference_mode():
                    asked = [head for head in heads if head is not None]
                    rows = likenesses(model, vae, shown.picture, asked, self.adapters)
                found.likeness[there] = rows.clone()
            rows = self.network.embed(shown.picture.expand(len(part), -1, -1, -1), shown.faces)
            found.cosines[part] = rows @ torch.stack([x.mean(0) for x in self.known()]).T
            heights = [head.box[3] - head.box[1] for head in shown.heads]
            found.heights[part] = torch.tensor(heights).float()
            logging.info("%s: %d heads of %s", level, len(part), shown.picture.shape)
        torch.save(vars(found), kept)
        return found

    def known(self) -> list[Tensor]:
        """Returns the embeddings (N, D) of everybody's training photos."""
        return [
            torch.cat([self.network.embed(s.photo[None], [s.face]) for s in shots])
            for shots in self.references
        ]

    def timed(self) -> str:
        """Returns how long 8 heads and 8 adapters take."""
        from evaluation.scenes import scene

        from pfstorer_core.host.people.evidence import match_people

        generator = torch.Generator().manual_seed(0)
        shown = scene(self.shots[:8], DEGRADATIONS["medium"], generator, False)
        adapters = (self.adapters * 8)[:8]
        started, used = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            match_people(self.bench.model, self.bench.vae, shown.picture, shown.heads, adapters)
        seconds, busy = time.perf_counter() - started, time.process_time() - used
        threads = torch.get_num_threads()
        return (
            f"8 heads, 8 adapters: {seconds:.1f} s, {busy:.1f} s of the processor's, {threads} "
            "CPU threads"
        )


def report(trial: Trial) -> str:
    """Returns the tables of all levels."""
    rows, finds = [], []
    for level in trial.options.levels:
        measured = trial.measured(level)
        if trial.options.found:
            missed, more = int((~measured.found).sum()), int(measured.false_finds)
            finds.append(f"{level}: {missed} heads not found, {more} found where there is none.\n")
        for strangers in (False, True):
            casts = _casts(trial, strangers)
            for way, given in _ways(trial, measured, casts).items():
                rows.append([level, "with" if strangers else "without", way, *_cells(trial, given)])
                some = [x for x in given if _name(trial, x) in trial.options.unseen]
                if way == OURS and some:
                    names = f"{OURS}, heads of {' and '.join(trial.options.unseen)}"
                    rows.append([*rows[-1][:2], names, *_cells(trial, some)])
    heads = len(trial.shots)
    known = sum(shot.who is not None for shot in trial.shots)
    header = ["degradation", "strangers", "by", *_CELLS]
    return (
        f"{len(trial.people)} people, {known} held-out photos of them and {heads - known} of "
        f"strangers at each level, heads of 48 to 128 px. {trial.options.casts} casts of 3 to 6 "
        "heads each.\n\n" + markdown_table(header, rows) + "".join(f"\n{line}" for line in finds)
    )


@dataclass(frozen=True)
class Given:
    """What one head of a cast was given.

    Attributes:
        shot: index of the photo.
        kind: KNOWN, LEFT_OUT or STRANGER.
        outcome: "right", "wrong" or "nobody".
    """

    shot: int
    kind: str
    outcome: str


def _casts(trial: Trial, strangers: bool) -> list[Any]:
    from evaluation.scenes import draw_cast

    found = []
    for number in range(trial.options.casts):
        seed = derive_seed(trial.options.seed, "cast", strangers, number)
        cast = draw_cast(trial.shots, strangers, torch.Generator().manual_seed(seed))
        if cast.offered:
            found.append(cast)
    return found


def _ways(trial: Trial, measured: Measured, casts: Sequence[Any]) -> dict[str, list[Given]]:
    from pfstorer_core.host.people import recognition
    from pfstorer_core.host.people.evidence import evidence_of

    ours = [assign(evidence_of(measured.likeness[c.shots][:, c.offered])) for c in casts]
    found = {OURS: _outcomes(trial, casts, ours)}
    usual = recognition.usual_similarities(trial.known())
    both = [
        assign(
            evidence_of(measured.likeness[c.shots][:, c.offered])
            + recognition.evidence_of(measured.cosines[c.shots][:, c.offered], usual)
        )
        for c in casts
    ]
    found[BOTH] = _outcomes(trial, casts, both)
    best, score = 0.0, -1.0
    for limit in torch.linspace(-0.1, 0.8, 19).tolist():
        given = [assign(measured.cosines[c.shots][:, c.offered] - limit, 0.0) for c in casts]
        outcomes = _outcomes(trial, casts, given)
        right = sum(_fits(x) for x in outcomes) / len(outcomes)
        if right > score:
            best, score, found[NETWORK] = limit, right, outcomes
    logging.info("the network's best limit is %.2f", best)
    generator = torch.Generator().manual_seed(0)
    chance = [
        assign(1 + torch.rand(len(c.shots), len(c.offered), generator=generator), 0.0)
        for c in casts
    ]
    found[CHANCE] = _outcomes(trial, casts, chance)
    return found


def _outcomes(
    trial: Trial, casts: Sequence[Any], given: Sequence[Sequence[int | None]]
) -> list[Given]:
    found = []
    for cast, adapters in zip(casts, given, strict=True):
        truth = cast.truth(trial.shots)
        for shot, adapter, right in zip(cast.shots, adapters, truth, strict=True):
            who = trial.shots[shot].who
            kind = STRANGER if who is None else KNOWN if right is not None else LEFT_OUT
            outcome = "nobody" if adapter is None else "right" if adapter == right else "wrong"
            found.append(Given(shot, kind, outcome))
    return found


def _fits(given: Given) -> bool:
    """Whether a head has its adapter, or nobody where it has none."""
    return given.outcome == ("right" if given.kind == KNOWN else "nobody")


_CELLS = ["heads", "as it should be", "wrong", "known: right", "wrong", "nobody"]
_CELLS += ["left out: wrong", "strangers: wrong"]


def _cells(trial: Trial, given: Sequence[Given]) -> list[str]:
    kinds = {kind: [x for x in given if x.kind == kind] for kind in (KNOWN, LEFT_OUT, STRANGER)}
    cells = [str(len(given)), _share(trial, given, _fits), _share(trial, given, _wrong)]
    known = kinds[KNOWN]
    cells += [_share(trial, known, _fits), _share(trial, known, _wrong)]
    cells.append(_share(trial, known, lambda x: x.outcome == "nobody"))
    return [*cells, *(_share(trial, kinds[k], _wrong) for k in (LEFT_OUT, STRANGER))]


def _name(trial: Trial, given: Given) -> str:
    who = trial.shots[given.shot].who
    return "" if who is None else trial.people[who].name


def _wrong(given: Given) -> bool:
    return given.outcome == "wrong"


def _share(trial: Trial, given: Sequence[Given], counts: Any) -> str:
    """Returns a share in percent with its interval over photos, those of a person together."""
    if not given:
        return "-"
    shots = len(trial.shots)
    hits, all_of = torch.zeros(shots), torch.zeros(shots)
    for x in given:
        all_of[x.shot] += 1
        hits[x.shot] += counts(x)
    people: dict[Any, list[int]] = {}
    for k, shot in enumerate(trial.shots):
        if all_of[k]:
            people.setdefault(k if shot.who is None else f"person {shot.who}", []).append(k)
    groups = list(people.values())
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(RESAMPLES):
        drawn = [groups[k] for k in torch.randint(len(groups), (len(groups),), generator=generator)]
        rows = torch.cat(
            [torch.tensor(g)[torch.randint(len(g), (len(g),), generator=generator)] for g in drawn]
        )
        values.append(float(hits[rows].sum() / all_of[rows].sum()))
    low, high = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
    whole = float(hits.sum() / all_of.sum())
    return f"{100 * whole:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
