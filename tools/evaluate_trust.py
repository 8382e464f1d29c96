"""Measures what looks at a picture before it is restored: automatic gamma and the person check.

    python tools/evaluate_trust.py                     # all, on drawn people
    python tools/evaluate_trust.py --sections gamma
    python tools/evaluate_trust.py --people FOLDER --recognition MobileFaceNet.tflite

Runs in ComfyUI's environment (scripts/setup_host.py makes one). Beside --sections and --strengths
it takes all options of tools/evaluate.py; people, adapters and their cache are the same, so with
the same options no adapter is trained twice. Writes Markdown tables to OUT, each with the constants
that these people suggest for the code. Intervals are 95% bootstraps that resample people and their
pictures.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

import repository  # noqa: F401
import torch
from evaluate import extending_parser, parse_options
from evaluation.adapters import FULL, VARIANTS
from evaluation.bench import Bench, Judge, gather_people
from evaluation.calibration import Ends, best_strength, fit_ramp, ramp
from evaluation.people import Person
from evaluation.recognition import load_recognition
from evaluation.strengths import STRENGTHS, degraded
from evaluation.tables import SIMILARITY, Figures, interval_text, markdown_table
from in_process import use_comfyui
from torch import Tensor

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.measures.intervals import clustered_interval
from pfstorer_core.measures.metrics import haarpsi, psnr
from pfstorer_core.pictures.detail import degradation_level, fine_detail

FIRST_STRANGER = 6_000_000
PSNR, HAARPSI = "PSNR (dB)", "HaarPSI"
MEASURES = (SIMILARITY, PSNR, HAARPSI)
GAMMAS = (0.0, 0.5, 0.7, 0.85, 1.0, 1.2)
TOLERATED = 0.005  # similarity that is given up for fidelity
SIGMAS = (1.75, 2.5, 3.5)  # of the noise under which the person check looks
FALSE_ALARMS = 0.05  # share of the pictures of the right person
AUTO, ONE, LEVEL = "auto", "1", "level of degradation"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line: the options of tools/evaluate.py, and a few of its own."""
    parser = extending_parser(__doc__)
    add = parser.add_argument
    add("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    add("--strengths", nargs="+", choices=list(STRENGTHS), default=list(STRENGTHS))
    chosen, others = parser.parse_known_args(arguments)
    if len(chosen.strengths) < 2:
        parser.error("constants are drawn between strengths; give --strengths two or more")
    options = parse_options(others)
    options.sections, options.strengths = chosen.sections, chosen.strengths
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen sections."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui(progress_bars=False)
    try:
        trial = Trial(options)
    except PFStorerError as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.sections:
        report = SECTIONS[name](trial)
        (options.out / f"trust_{name}.md").write_text(report, encoding="utf-8")
        print(report, flush=True)


class Trial:
    """The restorer, people with their adapters, and who judges their pictures.

    Args:
        options: of `parse`.

    Raises:
        PFStorerError: a file, a photo or a face is missing.
    """

    def __init__(self, options: argparse.Namespace):
        networks = [load_recognition(name) for name in options.recognition or [None]]
        judge = Judge(networks)
        self.drawn = not options.people
        self.strengths: list[str] = options.strengths
        self.bench = Bench(options)
        self.people = gather_people(options, {FULL: VARIANTS[FULL]})
        self.measures = [judge.measures(person) for person in self.people]
        clean = torch.cat([person.clean for person in self.people])
        extreme = torch.cat([degraded(person, "extreme")[0] for person in self.people])
        self.clean_detail, self.extreme_detail = (
            float(fine_detail(pictures).mean()) for pictures in (clean, extreme)
        )

    def adapter(self, person: Person) -> IdentityAdapter:
        """Returns a person's adapter, trained now if it is not there."""
        return self.bench.adapter(person, VARIANTS[FULL])

    def level(self, images: Tensor) -> Tensor:
        """Returns `degradation_level` (B,) of pictures as it is between these people's extremes."""
        share = (fine_detail(images) - self.clean_detail) / (
            self.extreme_detail - self.clean_detail
        )
        return share.clamp(0, 1)


def gamma(trial: Trial) -> str:
    """Compares automatic gamma with fixed ones at each strength of degradation."""
    from pfstorer_core.host import apply_identity

    figures = Figures()
    levels: dict[str, list[Tensor]] = {strength: [] for strength in trial.strengths}
    for person, measures in zip(trial.people, trial.measures, strict=True):
        adapter = trial.adapter(person)
        for strength in trial.strengths:
            lq, seed = degraded(person, strength)
            levels[strength].append(trial.level(lq))
            for value in (*GAMMAS, AUTO):
                model = apply_identity(trial.bench.model, adapter, value)
                restored = trial.bench.restore(model, lq, seed)
                measured = {
                    SIMILARITY: measures(restored)[SIMILARITY],
                    PSNR: psnr(restored, person.clean),
                    HAARPSI: haarpsi(restored, person.clean),
                    LEVEL: degradation_level(lq),
                }
                kind = value if isinstance(value, str) else f"{value:g}"
                figures.add(strength, kind, person.name, measured)
        logging.info("%s measured", person.name)
    rows = []
    for strength in trial.strengths:
        for kind in figures.kinds():
            cells = [interval_text(figures.mean(strength, kind, m), m) for m in MEASURES]
            changes = ["-"] * len(MEASURES)
            if kind == AUTO:
                changes = [_change(figures.difference(strength, AUTO, ONE, m)) for m in MEASURES]
            rows.append([strength, kind, *cells, *changes])
    found = ", ".join(
        f"{strength} {float(figures.values(strength, ONE, LEVEL).mean()):.2f}"
        for strength in trial.strengths
    )
    people, pictures = figures.values(trial.strengths[0], ONE, PSNR).shape
    head = (
        f"{people} people, {pictures} pictures each, {trial.bench.options.steps} steps, no colour "
        f"fix. Mean level of degradation: {found}.\n\n"
    )
    names = ["degradation", "gamma", *MEASURES, *(f"{m} against 1" for m in MEASURES)]
    table = markdown_table(names, rows)
    return f"{head}{table}\n{_gamma_constants(trial, figures, levels)}"


def _gamma_constants(trial: Trial, figures: Figures, levels: dict[str, list[Tensor]]) -> str:
    best, means = {}, {}
    for strength in trial.strengths:
        similarity, quality = (
            torch.stack([figures.values(strength, f"{g:g}", m).mean() for g in GAMMAS])
            for m in (SIMILARITY, HAARPSI)
        )
        best[strength] = best_strength(GAMMAS, similarity, quality, TOLERATED)
        means[strength] = float(torch.cat(levels[strength]).mean())
    ends, gammas = fit_ramp(list(means.values()), list(best.values()))
    rows = [
        [strength, f"{means[strength]:.2f}", f"{best[strength]:g}"] for strength in trial.strengths
    ]
    table = markdown_table(["degradation", "level", "best gamma"], rows)
    return (
        f"The best gamma has the highest {HAARPSI} among those at most {TOLERATED} below the "
        "highest identity similarity; levels are between these people's clean and extreme "
        f"pictures.\n\n{table}\n"
        "For `pfstorer_core/pictures/detail.py`, then for\n"
        "`pfstorer_core/identities/automatic_gamma.py`:\n\n```\n"
        f"_CLEAN, _EXTREME = {trial.clean_detail:.1f}, {trial.extreme_detail:.1f}\n"
        f"_LEVELS, _GAMMAS = {_pair(ends)}, {_pair(gammas)}\n```\n"
    )


def guard(trial: Trial) -> str:
    """Counts how often the person check warns of the right person and of others."""
    from pfstorer_core.host.restoring import person_check

    pictures = {strength: _shown(trial, strength) for strength in trial.strengths}
    used = person_check.SIGMA
    scores: dict[float, dict[str, Tensor]] = {}
    for sigma in dict.fromkeys((used, *SIGMAS)):
        scores[sigma] = {strength: _scores(trial, lq, sigma) for strength, lq in pictures.items()}
        logging.info("person check under noise of %g measured", sigma)
    apart = {
        sigma: [_apart(of_strength) for of_strength in found.values()]
        for sigma, found in scores.items()
    }
    best = max(apart, key=lambda sigma: sum(apart[sigma]))

    shape = scores[used][trial.strengths[0]].shape  # (3, P, M)
    _, people, count = shape
    levels = {s: trial.level(lq.flatten(0, 2)).reshape(shape) for s, lq in pictures.items()}
    between, ends = _limits(levels, scores[best])
    # each person's pictures against limits that the other people's gave
    without = [
        _limits(_without(levels, k), _without(scores[best], k))
        for k in range(people if people > 1 else 0)
    ]
    now, then, new = [], [], []
    for strength, lq in pictures.items():
        limits = person_check.limits_of(degradation_level(lq.flatten(0, 2))).reshape(shape)
        now.append([strength, *_guard_row(scores[used][strength], limits)])
        limits = ramp(levels[strength], between, ends)
        then.append([strength, *_guard_row(scores[best][strength], limits)])
        if without:
            limits = torch.stack(
                [ramp(levels[strength][:, k], *fitted) for k, fitted in enumerate(without)], 1
            )
            new.append([strength, *_guard_row(scores[best][strength], limits)])
    others = "strangers" if trial.drawn else "all others"
    names = ["degradation", "false alarms", "hits, next person", f"hits, {others}", "AUC", "score"]
    names += ["next person", others]
    by_sigma = [
        [f"{sigma:g}", *(f"{value:.3f}" for value in values)] for sigma, values in apart.items()
    ]
    return (
        f"{people} adapters, {count} pictures each: of the person (warned: false alarm), of the "
        f"next person and of {others} (warned: hit). AUC: how often a picture of the person scores "
        f"above one of somebody else.\n\n{markdown_table(names, now)}\n"
        "AUC by the sigma of the noise:\n\n"
        f"{markdown_table(['sigma', *trial.strengths], by_sigma)}\n"
        "For `pfstorer_core/host/restoring/likeness.py` and `person_check.py`, with the levels of "
        f"`_CLEAN, _EXTREME = {trial.clean_detail:.1f}, {trial.extreme_detail:.1f}`:\n\n"
        f"```\nSIGMA = {best:g}\n"
        f"_LEVELS, _LIMITS = {_pair(between)}, {_pair(ends)}\n```\n\n"
        f"What they give on these pictures, from which they were taken:\n\n"
        f"{markdown_table(names, then)}\n"
        f"Each person's with limits from the others' pictures:\n\n{markdown_table(names, new)}"
    )


def _limits(levels: dict[str, Tensor], scores: dict[str, Tensor]) -> tuple[Ends, Ends]:
    """Returns the ramp of limits that few pictures of the right person score below.

    Args:
        levels: of degradation of the pictures (3, P, M), for each strength.
        scores: of them, the person's own first.
    """
    lowest = [float(own.quantile(FALSE_ALARMS)) for own, *_ in scores.values()]
    return fit_ramp([float(level.mean()) for level in levels.values()], lowest)


def _without(values: dict[str, Tensor], person: int) -> dict[str, Tensor]:
    """Returns values (3, P, M) of each strength without a person's."""
    return {s: torch.cat([x[:, :person], x[:, person + 1 :]], 1) for s, x in values.items()}


def _shown(trial: Trial, strength: str) -> Tensor:
    """Returns what each adapter is asked about: (3, P, M, 3, S, S), degraded.

    They are the person's pictures, the next person's, and those of others: strangers beside drawn
    people, else all but these two where there are more.
    """
    people = trial.people
    own = torch.stack([degraded(person, strength)[0] for person in people])  # (P, M, 3, S, S)
    following = own.roll(-1, 0)
    count, size = own.shape[1], own.shape[-1]
    if trial.drawn:
        drawn = [portrait_set(FIRST_STRANGER + k, 1, k, size) for k in range(count)]
        strangers = [
            degraded(replace(p, name=f"strangers of {p.name}", clean=torch.cat(drawn)), strength)[0]
            for p in people
        ]
        return torch.stack([own, following, torch.stack(strangers)])
    others = []
    for k in range(len(people)):
        rest = [own[j] for j in range(len(people)) if j not in (k, (k + 1) % len(people))]
        # One of each in turn.
        others.append(torch.stack(rest or [following[k]], 1).flatten(0, 1)[:count])
    return torch.stack([own, following, torch.stack(others)])


def _scores(trial: Trial, pictures: Tensor, sigma: float) -> Tensor:
    """Returns the scores (3, P, M) of the person check for what `_shown` gives."""
    from pfstorer_core.host import apply_identity
    from pfstorer_core.host.restoring.person_check import check_persons

    found = []
    for k, person in enumerate(trial.people):
        model = apply_identity(trial.bench.model, trial.adapter(person))
        (check,) = check_persons(model, trial.bench.vae, pictures[:, k].flatten(0, 1), sigma)
        found.append(check.scores.reshape(pictures.shape[0], -1))  # (3, M)
    return torch.stack(found, 1).double()


def _apart(scores: Tensor) -> float:
    """Returns how often a picture of the person scores above one of somebody else (AUC)."""
    own, others = scores[0], scores[1:].movedim(0, 1).flatten(1)  # (P, M), (P, 2 M)
    return float((own[:, :, None] > others[:, None]).double().mean())


def _guard_row(scores: Tensor, limits: Tensor) -> list[str]:
    warned = (scores < limits).double()  # (3, P, M)
    return [
        *(interval_text(clustered_interval(x)) for x in warned),
        f"{_apart(scores):.3f}",
        *(f"{float(x.mean()):+.2f}" for x in scores),
    ]


def _pair(values: tuple[float, float]) -> str:
    return f"({round(values[0], 2):g}, {round(values[1], 2):g})"


def _change(interval: tuple[float, float, float]) -> str:
    value, low, high = interval
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


SECTIONS = {"gamma": gamma, "guard": guard}

if __name__ == "__main__":
    main()
