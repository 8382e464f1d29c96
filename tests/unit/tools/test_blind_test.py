"""The blind test: what is shown, the page, and the tally of votes with a known preference."""

import base64
import csv
import io
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from blind.page import LIKENESS, QUALITY, Page, read_page
from blind.study import plan_screens, read_results
from blind.tally import COLUMNS, read_votes, tally
from blind_test import make_page, parse, tally_votes
from PIL import Image
from torchvision.utils import save_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError

NAMES = ["ada", "ben", "cleo", "dora"]
HOSTILE = "</script><img src=x onerror=alert(1)>|`$"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn portraits as two methods' results, with LQ pictures and references."""
    root = tmp_path_factory.mktemp("results")
    for number, name in enumerate(NAMES):
        clean = portrait_set(5_000_000 + number, 2, 1, 32)
        generator = torch.Generator().manual_seed(number)
        pictures = {
            "lq": degrade(clean[:1], PRESETS["extreme"], generator),
            "base": degrade(clean[:1], PRESETS["medium"], generator),
            "personalized": degrade(clean[:1], PRESETS["light"], generator),
            "references": clean[1:],
        }
        for folder, picture in pictures.items():
            (root / folder).mkdir(exist_ok=True)
            save_image(picture, root / folder / f"{name}.png")
    return root


def made(results: Path, out: Path, *options: str) -> Page:
    make_page(parse(["make", str(results), "--out", str(out), *options]))
    return read_page(out)


def folders(root: Path, **methods: list[str]) -> Path:
    """Writes grey pictures of 16 px, by method."""
    for method, names in methods.items():
        (root / method).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (16, 16), "grey").save(root / method / name)
    return root


def rows(page: Page, voter: str, choices: dict[tuple[int, int], str]) -> list[list[str]]:
    """What the page saves when the voter chooses so, by screen and question."""
    return [
        [page.digest, voter, f"t{s + 1}q{q + 1}", page.questions[q], *page.codes[s], choice, "2.50"]
        for (s, q), choice in choices.items()
    ]


def write_votes(path: Path, lines: list[list[str]]) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *lines])
    path.write_text("\ufeff" + text.getvalue(), encoding="utf-8", newline="")
    return path


def preferring(page: Page, method: str, share: float, seed: int) -> dict[tuple[int, int], str]:
    """Choices of a voter who prefers a method with a probability."""
    chance = random.Random(seed)
    choices = {}
    for number, screen in enumerate(page.screens):
        for question in range(len(page.questions)):
            liked = (chance.random() < share) == (screen.left == method)
            choices[number, question] = "left" if liked else "right"
    return choices


def table(text: str, header: str) -> list[dict[str, str]]:
    """The rows of the Markdown table whose header has this column."""
    lines = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    start = next(k for k, line in enumerate(lines) if header in line)
    body = lines[start + 2 :]
    end = next(k for k, line in enumerate(body) if not line)
    return [dict(zip(lines[start], line, strict=True)) for line in body[:end]]


def interval(cell: str) -> tuple[float, float, float]:
    mean, low, high = re.findall(r"\d\.\d\d", cell)
    return float(mean), float(low), float(high)


def test_every_pair_of_every_picture_is_shown_with_balanced_sides() -> None:
    names, methods = [f"{k}" for k in range(9)], ["a", "b", "c"]
    screens = plan_screens(names, methods, repeat=0.0, seed=3)
    shown = Counter((s.picture, *sorted((s.left, s.right))) for s in screens)
    assert len(shown) == 9 * 3 and set(shown.values()) == {1}
    for pair in (("a", "b"), ("a", "c"), ("b", "c")):
        sides = Counter(s.left for s in screens if {s.left, s.right} == set(pair))
        assert sorted(sides.values()) == [4, 5]


def test_order_and_sides_follow_the_seed() -> None:
    plans = [plan_screens(NAMES, ["a", "b"], 0.25, seed) for seed in (0, 0, *range(1, 9))]
    assert plans[0] == plans[1]
    assert len({tuple(plan) for plan in plans}) == 9
    assert len({plan[0].left for plan in plans}) == 2


@pytest.mark.parametrize(("count", "repeat", "repeats"), [(20, 0.1, 2), (3, 0.1, 1), (1, 0.5, 1)])
def test_repeats_come_later_with_swapped_sides(count: int, repeat: float, repeats: int) -> None:
    for seed in range(20):
        screens = plan_screens([f"{k}" for k in range(count)], ["a", "b"], repeat, seed)
        again = [(k, s) for k, s in enumerate(screens) if s.repeat_of is not None]
        assert len(again) == repeats and len(screens) == count + repeats
        for k, screen in again:
            before = screens[screen.repeat_of]
            assert screen.repeat_of < k and before.repeat_of is None
            assert (before.picture, before.left, before.right) == (
                screen.picture,
                screen.right,
                screen.left,
            )


def test_the_page_is_one_file_that_loads_nothing_and_tells_no_names(
    results: Path, tmp_path: Path
) -> None:
    page = made(results, tmp_path / "page.html", "--seed", "5")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.questions == [LIKENESS, QUALITY]
    assert len(page.screens) == len(NAMES) + 1
    assert {(s.left, s.right) for s in page.screens} == {
        ("base", "personalized"),
        ("personalized", "base"),
    }
    plain = re.sub(r"data:image/webp;base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|<link|src=|@import", plain.split('id="key"')[0])
    assert not [word for word in ("personalized", *NAMES) if re.search(rf"\b{word}\b", plain)]
    assert plain.count('"p') >= 2 * len(NAMES)
    again = made(results, tmp_path / "again.html", "--seed", "5")
    assert again == page
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert made(results, tmp_path / "other.html", "--seed", "6").digest != page.digest


def test_hostile_names_and_questions_stay_text(tmp_path: Path) -> None:
    method = HOSTILE.replace("/", "")
    root = folders(tmp_path / "results", **{method: ["<b>.png"], "plain": ["<b>.png"]})
    question = f"{HOSTILE} @@key@@ \u2028"
    page = made(root, tmp_path / "page.html", "--question", question)
    assert page.questions == [question.strip()]
    assert {s.left for s in page.screens} == {method, "plain"}
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text and "<b>" not in text
    assert text.count("</script>") == 3
    votes = write_votes(tmp_path / "votes.csv", rows(page, "Ann|<i>", {(0, 0): "left"}))
    shown = tally(read_votes([votes], [page]))
    (row,) = table(shown, "prefer A")
    assert {row["A"], row["B"]} == {method.replace("|", r"\|"), "plain"}


def test_references_of_other_names_are_shown_with_every_picture(
    results: Path, tmp_path: Path
) -> None:
    shared = folders(tmp_path, person=[f"photo {k}.jpg" for k in range(6)]) / "person"
    found = read_results(results, references=shared)
    assert {len(photos) for photos in found.references.values()} == {4}
    own = read_results(results)
    assert own.references["ada"] == [results / "references" / "ada.png"]
    assert own.lq["ben"] == results / "lq" / "ben.png"


def test_candidates_are_shown_at_one_size_and_without_metadata(tmp_path: Path) -> None:
    root = tmp_path / "results"
    for method, size in (("small", (20, 30)), ("large", (40, 60))):
        (root / method).mkdir(parents=True)
        exif = Image.Exif()
        exif[0x010E] = "secret"
        Image.new("RGB", size, "red").save(root / method / "a.png", exif=exif)
    made(root, tmp_path / "page.html", "--quality", "100")
    text = (tmp_path / "page.html").read_text()
    uris = re.findall(r"data:image/webp;base64,([\w+/=]+)", text)
    assert len(uris) == 2
    for uri in uris:
        data = base64.b64decode(uri)
        picture = Image.open(io.BytesIO(data))
        assert picture.size == (20, 30) and b"secret" not in data
        assert picture.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("methods", "options", "sentence"),
    [
        ({"one": ["a.png"]}, [], "has 1 folder(s) of a method"),
        ({"one": ["a.png"], "lq": ["a.png"]}, [], "has 1 folder(s) of a method"),
        ({"one": ["a.png"], "two": ["b.png"]}, [], "The method 'one' lacks 1 of 2 pictures (b)"),
        ({"one": ["a.png"], "two": []}, [], "has no pictures"),
        ({"one": ["a.png", "a.jpg"], "two": ["a.png"]}, [], "both a.jpg and a.png"),
        ({"one": ["a.png"], "two": ["a.png"], "lq": ["b.png"]}, [], "'lq' lacks 1 of 1"),
        ({"one": ["a.png"], "two": ["a.png"]}, ["--repeat", "2"], "from 0 to 0.5"),
        ({"one": ["a.png"], "two": ["a.png"]}, ["--quality", "0"], "The quality is 0"),
        ({"one": ["a.png"], "two": ["a.png"]}, ["--question", " "], "question of the page is"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    tmp_path: Path, methods: dict[str, list[str]], options: list[str], sentence: str
) -> None:
    root = folders(tmp_path / "results", **methods)
    with pytest.raises(PFStorerError) as error:
        made(root, tmp_path / "page.html", *options)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "page.html").exists()


def test_pictures_that_do_not_fit_or_open_are_named(tmp_path: Path) -> None:
    root = folders(tmp_path / "results", one=["a.png"], two=["a.png"])
    Image.new("RGB", (16, 32)).save(root / "two" / "a.png")
    with pytest.raises(PFStorerError, match="'a' have different proportions"):
        made(root, tmp_path / "page.html")
    (root / "two" / "a.png").write_text("no picture")
    with pytest.raises(PFStorerError, match=r"a\.png.* is damaged|a\.png.* is no picture"):
        made(root, tmp_path / "page.html")


def test_a_known_preference_is_recovered(tmp_path: Path) -> None:
    root = folders(tmp_path / "results", **{m: [f"{k}.png" for k in range(24)] for m in "ab"})
    page = made(root, tmp_path / "page.html", "--question", "Better?", "--repeat", "0.5")
    files = [
        write_votes(tmp_path / f"{k}.csv", rows(page, f"voter {k}", preferring(page, "b", 0.7, k)))
        for k in range(10)
    ]
    options = ["tally", *map(str, files), "--page", str(tmp_path / "page.html")]
    text = tally_votes(parse(options))
    (row,) = table(text, "prefer A")
    assert (row["A"], row["B"], row["votes"]) == ("a", "b", "240")
    mean, low, high = interval(row["share of A"])
    assert low <= 0.3 <= high and 0.2 < mean < 0.4 and high < 0.5
    voters = table(text, "same answer to repeats")
    assert [row["voter"] for row in voters][-1] == "all"
    of, _, low, high = re.findall(r"[\d.]+", voters[-1]["same answer to repeats"])[1:]
    assert of == "120" and float(low) <= 0.7**2 + 0.3**2 <= float(high)
    side = re.findall(r"[\d.]+", voters[-1]["left of decided"])
    assert float(side[3]) <= 0.5 <= float(side[4])


def test_ties_sides_and_consistency_are_counted_by_hand(tmp_path: Path) -> None:
    root = folders(tmp_path / "results", **{m: [f"{k}.png" for k in range(4)] for m in "ab"})
    page = made(root, tmp_path / "page.html", "--question", "Better?", "--repeat", "0.25")
    again = next(k for k, s in enumerate(page.screens) if s.repeat_of is not None)
    first = [k for k in range(5) if k != again]
    always_left = {(k, 0): "left" for k in range(5)}
    undecided = {(k, 0): "none" for k in range(5)}
    fond = {(k, 0): "left" if page.screens[k].left == "a" else "right" for k in first}
    lines = [
        line
        for voter, choices in (("L", always_left), ("N", undecided), ("A", fond))
        for line in rows(page, voter, choices)
    ]
    text = tally(read_votes([write_votes(tmp_path / "votes.csv", lines)], [page]))
    (row,) = table(text, "prefer A")
    assert (row["votes"], row["no difference"]) == ("12", "4 (33%)")
    assert (row["prefer A"], row["prefer B"]) == ("6 (50%)", "2 (17%)")
    assert interval(row["share of A"])[0] == pytest.approx(8 / 12, abs=0.01)
    habits = {row["voter"]: row for row in table(text, "same answer to repeats")}
    assert habits["L"]["same answer to repeats"].startswith("0 of 1")
    assert habits["N"]["same answer to repeats"].startswith("1 of 1")
    assert habits["A"]["same answer to repeats"] == "-"
    assert habits["L"]["left of decided"].startswith("5 of 5, 1.00")
    assert habits["N"]["left of decided"] == "-"
    assert habits["all"]["median seconds"] == "2.5"


def test_three_methods_have_a_table_against_all_others(tmp_path: Path) -> None:
    root = folders(tmp_path / "results", **{m: ["x.png", "y.png"] for m in "abc"})
    page = made(root, tmp_path / "page.html", "--question", "Better?", "--repeat", "0")
    votes = rows(page, "Ann", preferring(page, "c", 1.0, 0))
    text = tally(read_votes([write_votes(tmp_path / "votes.csv", votes)], [page]))
    shares = {r["method"]: r for r in table(text, "share against all others")}
    assert interval(shares["c"]["share against all others"])[0] == 1.0
    assert {r["votes"] for r in shares.values()} == {"4"}
    assert len(table(text, "prefer A")) == 3


def test_pages_of_two_seeds_are_counted_together(results: Path, tmp_path: Path) -> None:
    pages = [made(results, tmp_path / f"{s}.html", "--seed", f"{s}") for s in (1, 2)]
    files = [
        write_votes(tmp_path / f"{k}.csv", rows(page, f"{k}", preferring(page, "base", 1.0, 0)))
        for k, page in enumerate(pages)
    ]
    text = tally(read_votes(files, pages))
    assert {row["votes"] for row in table(text, "prefer A")} == {"8"}
    assert {interval(row["share of A"])[0] for row in table(text, "prefer A")} == {1.0}


def test_wrong_files_of_votes_get_one_sentence(results: Path, tmp_path: Path) -> None:
    page = made(results, tmp_path / "page.html")
    good = rows(page, "Ann", {(0, 0): "left", (1, 1): "none"})

    def refused(*files: list[list[str]]) -> str:
        paths = [write_votes(tmp_path / f"v{k}.csv", lines) for k, lines in enumerate(files)]
        with pytest.raises(PFStorerError) as error:
            read_votes(paths, [page])
        assert "\n" not in str(error.value)
        return str(error.value)

    def changed(column: str, value: str) -> list[list[str]]:
        line = list(good[0])
        line[COLUMNS.index(column)] = value
        return [line]

    assert "has a second vote of 'Ann' for trial 't1q1'" in refused(good, good)
    assert "has a second vote" in refused([good[0], good[0]])
    assert "has a vote of the page 'ffff'" in refused(changed("page", "ffff"))
    assert "the trial 't99q1', which the page does not have" in refused(changed("trial", "t99q1"))
    assert "was changed" in refused(changed("choice", "both"))
    assert "was changed" in refused(changed("left", good[0][COLUMNS.index("right")]))
    assert "was changed" in refused(changed("seconds", "soon"))
    assert "There is no vote" in refused([])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PFStorerError, match="has no column 'page'"):
        read_votes([tmp_path / "other.csv"], [page])
    with pytest.raises(PFStorerError, match="cannot be read as a page of a blind test"):
        read_page(tmp_path / "v0.csv")
    assert len(read_votes([write_votes(tmp_path / "good.csv", good)], [page])) == 2


def test_votes_that_a_spreadsheet_saved_again_are_read(results: Path, tmp_path: Path) -> None:
    page = made(results, tmp_path / "page.html")
    lines = [list(COLUMNS), *rows(page, "'=1+1", {(0, 0): "left"})]
    lines[1][-1] = "2,5"
    path = tmp_path / "votes.csv"
    path.write_text("\n".join(";".join(line) for line in lines), encoding="utf-8")
    (vote,) = read_votes([path], [page])
    assert (vote.seconds, vote.voter, vote.choice) == (2.5, "'=1+1", "left")
