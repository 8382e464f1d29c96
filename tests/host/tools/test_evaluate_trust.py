"""Automatic gamma and the person check measured, small, with the constants that come of it."""

import re
from pathlib import Path

from evaluate_trust import GAMMAS, SIGMAS, Trial, gamma, guard, parse
from sample_pictures import portrait_folder
from tiny_models import write_bundled

from pfstorer_core.host.restoring import person_check
from pfstorer_core.measures.similarity import MINI_EMBEDDING_PATH

STRENGTHS = ["trace", "extreme"]
SMALL = ["--preset", "quick", "--training-steps", "4", "--steps", "1", "--strengths", *STRENGTHS]
FEW = [
    "--train-photos",
    "2",
    "--pictures",
    "2",
    "--references",
    "2",
    "--count",
    "2",
    "--size",
    "64",
]


def table(report: str, number: int = 0) -> list[list[str]]:
    """The cells of a table's rows, without its header."""
    found = re.findall(r"(?:^\|.*\n?)+", report, re.MULTILINE)[number]
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in found.splitlines()[2:]]


def test_drawn_people(tmp_path: Path) -> None:
    restorer = ["--restorer", str(write_bundled(tmp_path / "tiny.safetensors"))]
    trial = Trial(parse([*SMALL, *FEW, *restorer, "--out", str(tmp_path)]))
    report = gamma(trial)
    rows = table(report)
    assert [row[1] for row in rows] == [*(f"{g:g}" for g in GAMMAS), "auto"] * len(STRENGTHS)
    psnr = {(row[0], row[1]): row[3] for row in rows}
    assert psnr["extreme", "1"] != psnr["extreme", "0"]
    best = {row[0]: float(row[2]) for row in table(report, 1)}
    assert list(best) == STRENGTHS and set(best.values()) <= set(GAMMAS)
    assert re.search(r"^_CLEAN, _EXTREME = -\d+\.\d, -\d+\.\d$", report, re.MULTILINE)
    assert re.search(r"^_LEVELS, _GAMMAS = \(.+, .+\), \(.+, .+\)$", report, re.MULTILINE)

    used = person_check.SIGMA
    report = guard(trial)
    assert person_check.SIGMA == used
    assert [row[0] for row in table(report)] == [row[0] for row in table(report, 2)]
    assert [row[0] for row in table(report)] == STRENGTHS
    assert {float(row[0]) for row in table(report, 1)} == {used, *SIGMAS}
    assert re.search(r"^SIGMA = [\d.]+\n_LEVELS, _LIMITS = \(.+\), \(.+\)$", report, re.MULTILINE)


def test_photographed_people(tmp_path: Path) -> None:
    for name, number in (("ann", 5_000_000), ("ben", 5_000_001)):
        portrait_folder(tmp_path / "people" / name, number, 5)
    people = ["--people", str(tmp_path / "people"), "--recognition", str(MINI_EMBEDDING_PATH)]
    small = [*SMALL, "--train-photos", "2", "--size", "64", "--out", str(tmp_path / "out")]
    small += ["--restorer", str(write_bundled(tmp_path / "tiny.safetensors"))]
    report = gamma(Trial(parse([*small, *people])))
    assert [row[1] for row in table(report)][: len(GAMMAS)] == [f"{g:g}" for g in GAMMAS]
    assert len(list((tmp_path / "out" / "adapters").glob("*.safetensors"))) == 2
