"""The evaluation as a whole, small: trained adapters, restored pictures, tables."""

import csv
from pathlib import Path

import evaluate_base
import pytest
import torch
from evaluate import parse_options, run
from PIL import Image
from sample_pictures import portrait_folder
from torchvision.utils import save_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.similarity import MINI_EMBEDDING_PATH

SMALL = ["--preset", "quick", "--training-steps", "2", "--steps", "2"]
FEW = ["--train-photos", "2", "--pictures", "2", "--references", "2"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_method_is_measured_with_adapters_trained_once(tmp_path: Path) -> None:
    common = [*SMALL, *FEW, "--size", "64", "--out", str(tmp_path)]
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
        assert sheet.width > 4 * 64 and sheet.height > 10 * 64


DRAWN = ["--recognition", str(MINI_EMBEDDING_PATH), "--size", "64"]


def test_variants_are_measured_on_photos_against_the_full_method(tmp_path: Path) -> None:
    portrait_folder(tmp_path / "people" / "ann", 5_000_000, 6)
    variants = ["1 photo", "references at inference"]
    options = [*SMALL, *FEW, *DRAWN, "--out", str(tmp_path / "out")]
    run(parse_options([*options, "--people", str(tmp_path / "people"), "--variants", *variants]))
    rows = rows_of(tmp_path / "out" / "ablations.csv")
    kinds = ["LQ", "base", "full", *variants, "clean"]
    assert [row["kind"] for row in rows[: 2 * len(kinds) : 2]] == kinds
    assert {row["identity"] for row in rows} == {"ann"}
    assert len(list((tmp_path / "out" / "adapters").glob("*.safetensors"))) == 2
    report = (tmp_path / "out" / "ablations.md").read_text()
    assert "| extreme | references at inference |" in report


def test_given_pairs_are_restored_and_measured(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    generator = torch.Generator().manual_seed(0)
    for number, count in ((5_000_000, 2), (5_000_001, 1)):
        portrait_folder(pairs / "references" / str(number), number, 2)
        truth = portrait_set(number, count, seed=2, size=96)
        for part, images in (
            ("truth", truth),
            ("lq", degrade(truth, PRESETS["extreme"], generator)),
        ):
            (pairs / part / str(number)).mkdir(parents=True)
            for k, image in enumerate(images):
                save_image(image, pairs / part / str(number) / f"{k}.png")
    options = [*SMALL, *FEW, *DRAWN, "--out", str(tmp_path / "out"), "--gammas", "1"]
    run(parse_options([*options, "--pairs", str(pairs)]))
    rows = rows_of(tmp_path / "out" / "method.csv")
    assert len(rows) == 5 * 3 and {row["level"] for row in rows} == {"given"}
    lq = [row for row in rows if row["kind"] == "LQ"]
    assert all(0.3 < float(row["HaarPSI"]) < 0.95 for row in lq)
    report = (tmp_path / "out" / "method.md").read_text()
    assert "mini_embedding on whole pictures" in report
    (changes,) = (line for line in report.splitlines() if line.startswith("| given | gamma 1 | +0"))
    assert "of 3 |" in changes


def test_the_base_is_measured_on_drawn_portraits(tmp_path: Path) -> None:
    options = ["--identities", "3", "--views", "2", "--steps", "1", "2", "--out", str(tmp_path)]
    evaluate_base.run(evaluate_base.parse_options([*options, "--levels", "light", "extreme"]))
    rows = rows_of(tmp_path / "pictures.csv")
    kinds = ["LQ", "restored, 1 steps", "restored, 2 steps", "round trip"]
    assert len(rows) == 2 * len(kinds) * 6
    psnr = {
        (level, kind): [r["PSNR (dB)"] for r in rows if (r["level"], r["kind"]) == (level, kind)]
        for level in ("light", "extreme")
        for kind in kinds[:3]
    }
    assert len({tuple(values) for values in psnr.values()}) == len(psnr)
    table = (tmp_path / "table.md").read_text()
    assert "| extreme | restored, 2 steps |" in table and "of 6 |" in table
    assert (tmp_path / "drawn_portraits.png").is_file()


def test_the_base_is_measured_on_photos_with_faces_of_a_share_of_the_frame(tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    astronaut = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    photos = tmp_path / "photos" / "nasa"
    photos.mkdir(parents=True)
    for k in range(4):
        astronaut.crop((100 - 10 * k, 0, 400, 300)).save(photos / f"{k}.png")
    Image.new("RGB", (200, 200)).save(photos / "nobody.png")
    options = ["--photos", str(photos.parent), "--steps", "1", "--levels", "medium"]
    options += ["--face-shares", "0.5", "--out", str(tmp_path / "out")]
    evaluate_base.run(evaluate_base.parse_options(options))
    rows = rows_of(tmp_path / "out" / "pictures.csv")
    assert len(rows) == 3 * 4
    assert {(row["scene"], row["source"]) for row in rows} == {("face 0.5", "nasa")}
    table = (tmp_path / "out" / "table.md").read_text()
    assert (
        "## face 0.5, 4 pictures" in table and "| nasa | 4 | medium | restored, 1 steps |" in table
    )
    with pytest.raises(PFStorerError, match="0 of 4 faces are large enough for a share of 1"):
        larger = [*options, "--face-shares", "1", "--max-upscale", "0.5"]
        evaluate_base.run(evaluate_base.parse_options(larger))


def test_a_folder_with_too_few_photos_ends_with_a_sentence(tmp_path: Path) -> None:
    portrait_folder(tmp_path / "ann", 5_000_000, 1)
    with pytest.raises(PFStorerError, match="holds 1 photos"):
        run(
            parse_options([*SMALL, *FEW, *DRAWN, "--people", str(tmp_path), "--out", str(tmp_path)])
        )
