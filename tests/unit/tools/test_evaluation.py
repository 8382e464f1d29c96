"""Evaluation: people whose pictures never meet, figures and tables."""

import csv
from pathlib import Path

import pytest
import torch
from evaluate import method_cases, parse_options
from evaluation import tables
from evaluation.adapters import FULL, Cost
from evaluation.face_measures import FaceMeasures, described
from evaluation.grid import grid_energy
from evaluation.people import derive_seed, paired_people, photographed_people, procedural_person
from evaluation.recognition import load_recognition
from evaluation.reports import ablation_table, method_tables
from evaluation.tables import LEVELS, SIMILARITY, TO_TRUTH, Figures
from torch import Tensor
from torchvision.utils import save_image

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.similarity import identity_similarity, load_embedding

COUNTS = {"photos": 3, "references": 2, "pictures": 4, "size": 32, "seed": 0}


def closest(a: Tensor, b: Tensor) -> float:
    """The smallest of the mean differences between pictures of two (N, 3, H, W) batches."""
    return float((a[:, None] - b[None]).abs().mean(dim=(2, 3, 4)).min())


def test_a_procedural_persons_parts_share_no_picture() -> None:
    person = procedural_person(5_000_000, **COUNTS)
    photos = torch.cat(person.photos).movedim(-1, 1)
    assert [photo.shape for photo in person.photos] == [(1, 32, 32, 3)] * 3
    assert (len(person.references), len(person.clean)) == (2, 4)
    for a, b in ((photos, person.references), (photos, person.clean)):
        assert closest(a, b) > 0.01
    assert closest(person.references, person.clean) > 0.01


def test_procedural_people_are_reproducible_and_differ() -> None:
    person = procedural_person(5_000_000, **COUNTS)
    again = procedural_person(5_000_000, **COUNTS)
    assert torch.equal(person.clean, again.clean)
    other = procedural_person(5_000_001, **COUNTS)
    reseeded = procedural_person(5_000_000, **(COUNTS | {"seed": 1}))
    assert closest(person.clean, other.clean) > 0.01
    assert closest(person.clean, reseeded.clean) > 0.01


def test_fewer_photos_are_the_first_of_more() -> None:
    few = procedural_person(5_000_000, **COUNTS)
    many = procedural_person(5_000_000, **(COUNTS | {"photos": 8}))
    assert torch.equal(torch.cat(few.photos), torch.cat(many.photos[:3]))
    assert torch.equal(few.clean, many.clean)


def photo_folder(folder: Path, count: int, generator: torch.Generator) -> Path:
    folder.mkdir()
    for k in range(count):
        save_image(torch.rand(3, 48 + k, 60, generator=generator), folder / f"{k}.png")
    return folder


def test_photographed_people_are_split_without_overlap(
    tmp_path: Path, generator: torch.Generator
) -> None:
    for name, count in (("ann", 9), ("ben", 7)):
        photo_folder(tmp_path / name, count, generator)
    counts = {"photos": 3, "pictures": 8, "size": 32, "seed": 0}
    people = photographed_people(tmp_path, **counts)
    assert [person.name for person in people] == ["ann", "ben"]
    for person, held_out in zip(people, (6, 4), strict=True):
        assert len({photo.shape[1] for photo in person.photos}) == 3  # none is drawn twice
        assert person.references.shape == (held_out, 3, 32, 32)
        assert person.clean.shape == (4, 3, 32, 32)  # what the smaller folder leaves
        # each picture is compared with all held-out ones but itself
        assert person.compared is not None and person.compared.sum(1).tolist() == [held_out - 1] * 4
        for k, picture in enumerate(person.clean):
            assert closest(picture[None], person.references[person.compared[k]]) > 0.01
    again = photographed_people(tmp_path, **counts)
    assert torch.equal(people[0].clean, again[0].clean)
    alone = photographed_people(tmp_path, **(counts | {"pictures": 2}))
    assert torch.equal(alone[0].clean, people[0].clean[:2])
    assert alone[0].references.shape == people[0].references.shape


def test_too_few_photos_are_refused(tmp_path: Path, generator: torch.Generator) -> None:
    counts = {"photos": 3, "pictures": 8, "size": 32, "seed": 0}
    with pytest.raises(PFStorerError, match="a folder per person"):
        photographed_people(tmp_path, **counts)
    photo_folder(tmp_path / "ann", 4, generator)
    with pytest.raises(PFStorerError, match="holds 4 photos, but 3 to train on and two"):
        photographed_people(tmp_path, **counts)


def test_pairs_are_matched_by_name(tmp_path: Path, generator: torch.Generator) -> None:
    for part, count in (("lq", 2), ("truth", 2), ("references", 3)):
        (tmp_path / part).mkdir()
        photo_folder(tmp_path / part / "ann", count, generator)
    (person,) = paired_people(tmp_path, photos=2, size=32)
    assert (person.name, len(person.photos), len(person.references)) == ("ann", 2, 2)
    assert person.lq is not None and person.lq.shape == person.clean.shape == (2, 3, 32, 32)
    renamed = tmp_path / "truth" / "ann" / "other.png"
    (tmp_path / "truth" / "ann" / "1.png").rename(renamed)
    with pytest.raises(PFStorerError, match="'1' of 'ann' is in only one of the folders"):
        paired_people(tmp_path, photos=2, size=32)
    renamed.unlink()
    (tmp_path / "lq" / "ann" / "1.png").unlink()
    with pytest.raises(PFStorerError, match="holds one picture"):
        paired_people(tmp_path, photos=2, size=32)


def test_faces_are_measured_against_the_truth_and_the_other_pictures() -> None:
    portraits = portrait_set(5_000_000, 4, seed=0, size=64)
    networks = [load_recognition(), load_recognition()]
    measures = FaceMeasures(networks, None, portraits[:3], [])
    assert measures(portraits[:3])[TO_TRUTH].tolist() == pytest.approx([1.0] * 3)
    others = ~torch.eye(4, dtype=torch.bool)[:3]
    measures.add_references(portraits, [], others)
    shown = portraits[[1, 0, 2]]
    values = measures(shown)
    again = f"{SIMILARITY}, mini embedding"
    assert list(values) == [SIMILARITY, TO_TRUTH, again, f"{TO_TRUTH}, mini embedding"]
    assert torch.equal(values[again], values[SIMILARITY])
    embedding = load_embedding()
    for k in range(3):
        own = identity_similarity(embedding, shown[k : k + 1], portraits[others[k]])
        assert values[SIMILARITY][k] == pytest.approx(float(own), abs=1e-5)
        truth = identity_similarity(embedding, shown[k : k + 1], portraits[k : k + 1])
        assert values[TO_TRUTH][k] == pytest.approx(float(truth), abs=1e-5)
    assert described(networks[:1]) == "mini embedding on whole pictures"


def test_the_grid_is_found_by_its_period_alone(generator: torch.Generator) -> None:
    clean = portrait_set(5_000_000, 4, seed=0, size=128)
    assert grid_energy(clean, clean).abs().max() == 0
    for period in (4, 8):
        line = torch.cos(2 * torch.pi * torch.arange(128) / period)
        # pictures have more energy of their own at the longer period
        grid = (clean + 0.0025 * period * (line[:, None] + line)).clamp(0, 1)
        assert grid_energy(grid, clean, period).min() > 3
    # noise as strong, a shift and a blur are no grid
    noisy = (clean + 0.01 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    for other in (noisy, clean.roll(1, 3)):
        assert grid_energy(other, clean).abs().mean() < 1.5
    with pytest.raises(PFStorerError, match="at least 64 px"):
        grid_energy(clean[..., :48, :48], clean[..., :48, :48])
    with pytest.raises(PFStorerError, match="of one shape"):
        grid_energy(clean, clean[:1])


def test_seeds_differ_by_every_part() -> None:
    seeds = {derive_seed(a, b) for a in (0, 1, 11) for b in (0, 1, "1x")}
    assert len(seeds) == 9
    assert derive_seed(1, 12) != derive_seed(11, 2)


def figures_with(similarities: dict[str, float], generator: torch.Generator) -> Figures:
    """Figures of 3 people with 4 pictures each; kinds share each picture's own deviation."""
    figures = Figures()
    for person in "abc":
        deviation = 0.01 * torch.randn(4, generator=generator)
        for level in LEVELS:
            for kind, similarity in similarities.items():
                values = {SIMILARITY: similarity + deviation}
                if kind != "clean":
                    noise = torch.rand(4, generator=generator)
                    values |= {"PSNR (dB)": 20 + noise, "SSIM": noise, "HaarPSI": noise}
                figures.add(level, kind, person, values)
    return figures


METHOD_SIMILARITIES = {"LQ": 0.3, "base": 0.4, "gamma 1": 0.6, "wrong person": 0.35, "clean": 0.8}


def test_the_share_returned_is_the_ratio_of_means(generator: torch.Generator) -> None:
    figures = figures_with(METHOD_SIMILARITIES, generator)
    for kind, share in (("gamma 1", 0.5), ("wrong person", -0.125)):
        for value in figures.share_returned("extreme", kind):  # paired: no deviation is left
            assert value == pytest.approx(share, abs=1e-3)
    for value in figures.difference("medium", "gamma 1", "base", SIMILARITY):
        assert value == pytest.approx(0.2, abs=1e-4)
    mean = figures.mean("light", "base", SIMILARITY)
    assert mean is not None and mean[1] < mean[0] < mean[2]


def test_figures_keep_people_and_pictures_apart() -> None:
    figures = Figures()
    figures.add("light", "base", "b", {"SSIM": torch.tensor([0.1, 0.2])})
    figures.add("light", "base", "a", {"SSIM": torch.tensor([0.3, 0.4])})
    figures.add("light", "clean", "b", {SIMILARITY: torch.tensor([0.9, 0.8])})
    assert figures.values("light", "base", "SSIM").tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert figures.kinds() == ["base", "clean"]
    assert figures.mean("light", "clean", "SSIM") is None
    with pytest.raises(KeyError):
        figures.values("extreme", "base", "SSIM")


def test_people_with_different_numbers_of_pictures_count_alike() -> None:
    figures = Figures()
    for person, base, better in (("a", [0.1, 0.2, 0.3], [0.2, 0.3, 0.4]), ("b", [0.6], [0.5])):
        figures.add("given", "base", person, {"SSIM": torch.tensor(base)})
        figures.add("given", "gamma 1", person, {"SSIM": torch.tensor(better)})
    assert figures.values("given", "base", "SSIM").flatten().tolist() == pytest.approx([0.2, 0.6])
    mean = figures.mean("given", "base", "SSIM")
    assert mean is not None and mean[0] == pytest.approx(0.4)
    assert figures.difference("given", "gamma 1", "base", "SSIM")[0] == pytest.approx(0.0)
    assert figures.better("given", "gamma 1", "base", "SSIM") == "3 of 4"
    assert (figures.levels(), figures.measures()) == (["given"], ["SSIM"])


def test_the_csv_has_every_picture(tmp_path: Path, generator: torch.Generator) -> None:
    figures = figures_with(METHOD_SIMILARITIES, generator)
    figures.write_csv(tmp_path / "figures.csv")
    with (tmp_path / "figures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4 * len(LEVELS) * len(METHOD_SIMILARITIES)
    clean = next(row for row in rows if row["kind"] == "clean")
    assert clean["SSIM"] == "" and float(clean[SIMILARITY]) == pytest.approx(0.8, abs=0.05)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_methods_tables_say_what_the_figures_say(generator: torch.Generator) -> None:
    text = method_tables(figures_with(METHOD_SIMILARITIES, generator))
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {6, 5}  # three measures of quality and the similarity
    changes = {row[1]: row for row in rows if len(row) == 5 and row[0] == "extreme"}
    assert list(changes) == ["gamma 1", "wrong person"]
    assert changes["gamma 1"][2].startswith("+0.200 [+0.200, +0.200]")
    assert changes["gamma 1"][3:] == ["12 of 12", "0.500 [0.500, 0.500]"]
    assert changes["wrong person"][2].startswith("-0.050")
    assert changes["wrong person"][3] == "0 of 12"


def test_the_ablation_table_compares_with_the_full_method(generator: torch.Generator) -> None:
    kinds = {"base": 0.4, FULL: 0.6, "1 photo": 0.45, "clean": 0.8}
    costs = {FULL: [Cost(100.0, 1200, 2), Cost(120.0, 1200, 2)], "1 photo": []}
    text = ablation_table(figures_with(kinds, generator), costs)
    rows = {tuple(cells(line)[:2]): cells(line)[2:] for line in text.splitlines()}
    assert rows["extreme", FULL][-3:] == ["0.500 [0.500, 0.500]", "-", "110"]
    share, against, seconds = rows["extreme", "1 photo"][-3:]
    assert share == "0.125 [0.125, 0.125]"
    assert against == "-0.150 [-0.150, -0.150]"
    assert seconds == "-"
    assert rows["light", "clean"][1:3] == ["-", "-"]


def test_intervals_have_the_measures_decimals() -> None:
    assert tables.interval_text((20.123, 19.0, 21.0), "PSNR (dB)") == "20.12 [19.00, 21.00]"
    assert tables.interval_text((0.1, -0.1, 0.2), sign=True) == "+0.100 [-0.100, +0.200]"
    assert tables.interval_text(None) == "-"


def test_the_contact_sheet_shows_each_picture_in_its_cell() -> None:
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 20, 24)
    sheet = tables.contact_sheet(
        [("first", colours), ("second row", colours.flip(0))], ["a", "b", "c"], cell=16
    )
    left, top = sheet.width - 3 * 16, sheet.height - 2 * 16
    assert left > 16 and top > 10
    red, blue = (255, 0, 0), (0, 0, 255)
    assert sheet.getpixel((left + 8, top + 8)) == red
    assert sheet.getpixel((left + 40, top + 8)) == blue
    assert sheet.getpixel((left + 8, top + 24)) == blue
    labels = sheet.crop((0, 0, left, sheet.height)).convert("L")
    assert labels.getextrema()[0] < 100  # there is writing


def test_options_choose_the_people_and_the_variants() -> None:
    options = parse_options(["--identities", "7", "9", "--variants", "1 photo", FULL])
    assert (options.identities, options.variants) == ([7, 9], ["1 photo", FULL])
    assert (options.train_photos, options.gammas) == (8, [0.5, 1.0, 1.5])
    assert [case.kind for case in method_cases([1.0], people=2)] == [
        "base",
        "gamma 1",
        "wrong person",
    ]
    assert not any(case.wrong for case in method_cases([1.0], people=1))
    photos = parse_options(["--people", "folder", "--recognition", "dlib"])
    assert (photos.train_photos, photos.recognition) == (6, ["dlib"])
    with pytest.raises(SystemExit):  # the mini embedding knows no real person
        parse_options(["--people", "folder"])
    with pytest.raises(SystemExit):
        parse_options(["--variants", "unheard of"])
