"""The page of a blind test in a real browser: voted by keyboard, saved, tallied."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blind.page import read_page
from blind.tally import read_votes
from blind_test import make_page, parse, tally_votes
from playwright.sync_api import Browser, Page, Request
from torchvision.utils import save_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set

LIKED = "<b>sharp"
SHOWN = """() => [...document.images].filter(i => i.offsetParent)
    .every(i => i.complete && i.naturalWidth > 0)"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about three drawn portraits and two methods: 3 screens and a repeat, 8 answers."""
    folder = tmp_path_factory.mktemp("study")
    for number in range(3):
        clean = portrait_set(5_000_000 + number, 2, 1, 64)
        generator = torch.Generator().manual_seed(number)
        for method, picture in {
            "lq": degrade(clean[:1], PRESETS["extreme"], generator),
            LIKED: degrade(clean[:1], PRESETS["light"], generator),
            "soft": degrade(clean[:1], PRESETS["medium"], generator),
            "references": clean[1:],
        }.items():
            (folder / "results" / method).mkdir(parents=True, exist_ok=True)
            save_image(picture, folder / "results" / method / f"{number}.png")
    page = folder / "page.html"
    make_page(parse(["make", str(folder / "results"), "--out", str(page), "--seed", "1"]))
    return page


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    """The page, opened from the disk; fails if it raised an error or asked for anything else."""
    context = browser.new_context(viewport={"width": 1366, "height": 768}, accept_downloads=True)
    opened = context.new_page()
    problems: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith(("data:", "blob:", file.as_uri())):
            problems.append(request.url)

    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("request", note)
    opened.goto(file.as_uri())
    yield opened
    context.close()
    assert not problems


def place(page: Page) -> str:
    return page.locator("#place").inner_text()


def save(page: Page, path: Path) -> Path:
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename.endswith(".csv")
    download.value.save_as(path)
    return path


def test_votes_by_keyboard_are_saved_and_tallied(
    page: Page, file: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    started = time.monotonic()
    study = read_page(file)
    assert "two restorations by different methods" in page.locator("#form").inner_text()
    page.locator("#voter").fill('=HYPERLINK("x")')
    page.locator("#start").click()
    for number, screen in enumerate(study.screens):
        for question in study.questions:
            assert page.locator("#question").inner_text() == question
            page.wait_for_function(SHOWN)
            if pytestconfig.getoption("screenshots") and number == 1:
                folder = Path(pytestconfig.getoption("screenshots"))
                page.screenshot(path=folder / "blind_test.png")
            if number == 2:
                page.keyboard.press("0")
            else:
                page.keyboard.press("ArrowLeft" if screen.left == LIKED else "ArrowRight")
    assert page.locator("#thanks").inner_text() == "Thank you"
    path = save(page, tmp_path / "votes.csv")

    with open(path, encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 8
    assert {row["voter"] for row in rows} == {'\'=HYPERLINK("x")'}, "a spreadsheet shows it as text"
    assert LIKED not in path.read_text(encoding="utf-8")
    votes = read_votes([path], [study])
    screens = study.screens
    wanted = [None if number == 2 else LIKED for number in range(len(screens)) for _ in range(2)]
    assert [vote.preferred for vote in votes] == wanted
    assert all(0 <= vote.seconds < time.monotonic() - started for vote in votes)
    text = tally_votes(parse(["tally", str(path), "--page", str(file)]))
    assert f"| {LIKED} | soft | 3 |" in text


def test_going_back_changes_a_vote_and_a_closed_page_goes_on(
    page: Page, file: Path, tmp_path: Path
) -> None:
    page.locator("#start").click()
    assert place(page) == "1 of 8"
    assert page.locator("#back").is_disabled()
    page.keyboard.press("Backspace")
    assert place(page) == "1 of 8"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    assert place(page) == "1 of 8"
    assert page.locator("[data-choice=left]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    assert place(page) == "3 of 8", "on to the next without an answer"
    page.locator("[data-choice=left]").click()
    page.reload()
    assert page.locator("#start").inner_text() == "Go on"
    page.locator("#start").click()
    assert place(page) == "4 of 8"
    page.locator("#finish").click()
    assert page.locator("#count").inner_text() == "3 of 8 answers given."
    path = save(page, tmp_path / "votes.csv")
    votes = read_votes([path], [read_page(file)])
    assert [vote.choice for vote in votes] == ["right", "none", "left"]
    assert votes[0].voter.startswith("voter-")
    page.locator("#return").click()
    assert place(page) == "4 of 8"
    page.reload()
    page.locator("#restart").click()
    page.locator("#start").click()
    assert place(page) == "1 of 8"


def test_zoom_and_pixels_act_on_both_restorations_alike(page: Page) -> None:
    page.locator("#start").click()
    page.keyboard.press("z")
    page.keyboard.press("p")
    box = page.locator("#right .box").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
    style = """id => {
        const s = getComputedStyle(document.querySelector(`#${id} img`));
        const [x, y] = s.transformOrigin.split(' ').map(parseFloat);
        return [s.transform, s.imageRendering, x / parseFloat(s.width), y / parseFloat(s.height)];
    }"""
    left, right = (page.evaluate(style, side) for side in ("left", "right"))
    for seen in (left, right):
        assert seen[:2] == ["matrix(3, 0, 0, 3, 0, 0)", "pixelated"]
        assert seen[2:] == pytest.approx([0.25, 0.75], abs=0.01)
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(style, "left")[2] == pytest.approx(0.35, abs=0.02)
    assert place(page) == "1 of 8", "moving the view is no vote"
    page.keyboard.press("Z")
    assert page.evaluate(style, "left")[0] == "matrix(1, 0, 0, 1, 0, 0)"


def test_it_fits_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.locator("#start").click()
    page.wait_for_function(SHOWN)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for selector in ("#left img", "#right img", "#photos img", "[data-choice=right]"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 40
        assert box["x"] + box["width"] <= 361 and box["y"] + box["height"] <= 641
