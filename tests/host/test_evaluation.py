"""The evaluation as a whole, small: trained adapters, restored pictures, tables."""

import csv
from pathlib import Path

import pytest
from evaluate import parse_options, run
from evaluate_tiles import Trial
from evaluate_trust import STRENGTHS, gamma, guard, parse
from PIL import Image
from torchvision.utils import save_image

from pfstorer_core.errors import PFStorerError
from pfstorer_core.portraits import portrait_set

SMALL = ["--preset", "quick", "--training-steps", "2", "--steps", "2"]
FEW = ["--train-photos", "2", "--pictures", "2", "--references", "2"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_method_is_measured_with_adapters_trained_once(tmp_path: Path) -> None:
    common = [*SMALL, *FEW, "--out", str(tmp_path)]
    run(parse_options([*common, "--first", "5000001", "--count", "1", "--only-train"]))
    assert not list(tmp_path.glob("*.md"))
    (early,) = (tmp_path / "adapters").glob("*.safetensors")
    written = early.stat().st_mtime_ns

    run(parse_options([*common, "--identities", "5000000", "5000001"]))
    assert len(list((tmp_path / "adapters").glob("*.safetensors"))) == 2
    assert early.stat().st_mtime_ns == written
    rows = rows_of(tmp_path / "method.csv")
    kinds = ["LQ", "base", "gamma 0.5", "gamma 1", "gamma 1.5", "wrong person", "clean"]
    assert len(rows) == len(kinds) * 3 * 2 * 2
    assert [row["kind"] for row in rows[:14:2]] == kinds
    scores = {kind: [r["PSNR (dB)"] for r in rows if r["kind"] == kind] for kind in kinds[:-1]}
    assert len({tuple(values) for values in scores.values()}) == len(scores)
    report = (tmp_path / "method.md").read_text()
    assert "| extreme | wrong person |" in report and "2 steps: " in report
    with Image.open(tmp_path / "method.png") as sheet:
        assert sheet.width > 4 * 128 and sheet.height > 10 * 128


def test_variants_are_measured_on_photos_against_the_full_method(tmp_path: Path) -> None:
    folder = tmp_path / "ann"
    folder.mkdir()
    for k, photo in enumerate(portrait_set(5_000_000, 6, seed=1, size=96)):
        save_image(photo, folder / f"{k}.png")
    variants = ["1 photo", "references at inference"]
    options = [*SMALL, *FEW, "--size", "64", "--out", str(tmp_path / "out")]
    run(parse_options([*options, "--photos", str(folder), "--variants", *variants]))
    rows = rows_of(tmp_path / "out" / "ablations.csv")
    kinds = ["LQ", "base", "full", *variants, "clean"]
    assert [row["kind"] for row in rows[: 2 * len(kinds) : 2]] == kinds
    assert {row["identity"] for row in rows} == {"ann"}
    assert len(list((tmp_path / "out" / "adapters").glob("*.safetensors"))) == 2
    report = (tmp_path / "out" / "ablations.md").read_text()
    assert "| extreme | references at inference |" in report


def test_a_folder_with_too_few_photos_ends_with_a_sentence(tmp_path: Path) -> None:
    save_image(portrait_set(5_000_000, 1, seed=1)[0], tmp_path / "only.png")
    with pytest.raises(PFStorerError, match="holds 1 photos"):
        run(parse_options([*SMALL, *FEW, "--photos", str(tmp_path), "--out", str(tmp_path)]))


def test_automatic_gamma_and_the_person_check_are_measured(tmp_path: Path) -> None:
    options = parse(["--out", str(tmp_path), "--people", "2", "--steps", "2"])
    trial = Trial(options, *SMALL, *FEW)
    rows = [line.split(" | ") for line in gamma(trial).splitlines() if line.startswith("| ")][1:]
    assert [row[1] for row in rows] == ["0", "0.5", "1", "auto"] * len(STRENGTHS)
    found = {(row[0][2:], row[1]): row[3] for row in rows}  # PSNR
    assert found["extreme", "auto"] == found["extreme", "1"] != found["extreme", "0"]
    table = [line for line in guard(trial).splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0][2:] for line in table] == list(STRENGTHS)
