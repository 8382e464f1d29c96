import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_client import Client
from comfyui_frontend import Frontend
from comfyui_server import PACK, Server
from layouts import misplaced
from sample_pictures import portrait_folder
from setup_host import REPO
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.groups import group_photo
from pfstorer_core.drawn.portraits import portrait_set

TEMPLATES = sorted(path.stem for path in (REPO / "example_workflows").glob("*.json"))
PHOTO, PERSON, FAMILY, ENLARGE, MEASURE, SUPIR = (
    next(name for name in TEMPLATES if name.startswith(number)) for number in "124567"
)
TRAIN, RESTORE = "PFStorerTrainIdentityAdapter", "PFStorerTiledRestore"
PEOPLE = "PFStorerRestorePeople"
FEW = {"steps": 8, "views_per_photo": 2, "batch": 1, "preview_every": 4}
SMALL = {**FEW, "size": 64}
DRAWN_PERSON = 5_000_000
CLICKS = 6  # to the first own photo, that in the system's dialog counted
# settings that the core refuses, each checked before those above it, and what it says of them
REFUSED: dict[str, dict[str, Any]] = {
    "Tiles of 8 px are too small": {"tile_size": 8},
    "no identity has a mask": {"masked_only": True},
    "noise but a flat grey": {"denoise": 0.5, "start": "noise"},
}
SHOWN_SIZES = """() => app.graph._nodes.find(n => n.type === "SaveImage").imgs.map(
    image => [image.naturalWidth, image.naturalHeight]
)"""
COMPARED = """() => {
    const node = app.graph._nodes.find(n => n.type === "ImageCompare");
    const {beforeImages, afterImages} = node.widgets[0].value;
    return beforeImages.length === 1 && afterImages.length === 1 && node.widgets[0].hidden;
}"""
NAME = "image => new URL(image.src, location).searchParams.get('filename')"
SAVED = f"""() => app.graph._nodes.filter(n => n.type === "SaveImage").flatMap(n => n.imgs ?? [])
    .map({NAME})"""
# The picture that an app shows is what was saved, and was not there before.
RESULT = rf"""before => {{
    const width = image => image.getBoundingClientRect().width;
    const [largest] = [...document.images].sort((a, b) => width(b) - width(a));
    const name = largest && ({NAME})(largest);
    return /^\w*(restored|measured)_/.test(name) && !before.includes(name);
}}"""


@pytest.fixture
def screenshots(tmp_path: Path, pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("screenshots") or tmp_path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drawn photos by the title of the node that takes each."""
    folder = tmp_path_factory.mktemp("photos")
    portraits = portrait_set(DRAWN_PERSON, 4, 1, 96)  # (4, 3, 96, 96)
    spoilt = degrade(portraits[3:, :, :, :80], PRESETS["medium"], torch.Generator().manual_seed(0))
    pictures = {f"Photo {k + 1} of the person": portraits[k] for k in range(3)}
    for title in ("Your photo", "The photo to restore", "The restored photo"):
        pictures[title] = spoilt[0]
    paths = {}
    for title, picture in pictures.items():
        paths[title] = folder / f"{title}.png"
        to_pil_image(picture).save(paths[title])
    return paths


def give_pictures(frontend: Frontend, photos: dict[str, Path]) -> None:
    """Chooses a photo in each Load Image node of the template."""
    for title in frontend.titles("LoadImage"):
        frontend.give_picture(title, photos[title])


def shoot(frontend: Frontend, path: Path) -> None:
    """Takes a picture of a template, whose nodes may have grown, but over nothing else."""
    frontend.screenshot(path)
    assert path.stat().st_size > 10_000, "an empty page compresses to less"
    assert misplaced(frontend.page.evaluate("app.graph.serialize()")) == []


def run_as_app(frontend: Frontend, screenshots: Path, name: str) -> None:
    """Opens a template as an app, runs it there and waits until its picture is seen.

    Its settings are not those of a run before, or ComfyUI gives that one's picture again.
    """
    before = frontend.page.evaluate(SAVED)
    frontend.open_as_app()
    frontend.page.screenshot(path=screenshots / f"{name} app.png")
    frontend.start(app=True)
    frontend.wait()
    frontend.page.wait_for_function(RESULT, arg=before)
    frontend.page.screenshot(path=screenshots / f"{name} app run.png")


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_every_template_opens(
    frontend: Frontend, client: Client, vue_nodes: bool, screenshots: Path
) -> None:
    without_supir = client.object_info("SUPIRApply") is None  # ComfyUI before 0.30
    for name in TEMPLATES:
        frontend.open_template(name)
        missing = ["SUPIRApply"] if name == SUPIR and without_supir else []
        assert frontend.missing_nodes() == missing
        assert not frontend.page.evaluate("app.canvas.low_quality"), "so small that text goes"
        kind = "vue" if vue_nodes else "canvas"
        shoot(frontend, screenshots / f"{name} {kind}.png")


def test_the_first_own_photo_takes_six_clicks(
    frontend: Frontend, photos: dict[str, Path], screenshots: Path
) -> None:
    started, clicks = time.monotonic(), 0
    page = frontend.page
    page.locator(".templates-tab-button").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(PACK, exact=True).first.click()
    dialog.get_by_test_id(f"template-workflow-{PHOTO}").click()
    clicks += 3
    dialog.wait_for(state="hidden")
    page.wait_for_function(
        "app.graph._nodes.every(n => n.type !== 'LoadImage' || n.widgets[1].last_y)"
    )
    page.wait_for_timeout(1000)  # the view glides to its place
    with page.expect_file_chooser() as chooser:
        frontend.press_widget("Your photo", "upload")
    chooser.value.set_files(photos["Your photo"])
    clicks += 2
    frontend.wait_for_images("LoadImage")
    frontend.set_widgets(RESTORE, longest_side=96)  # not of the user: the test is in a hurry
    frontend.run()
    clicks += 1
    frontend.wait_for_images()
    print(f"{clicks} clicks, {time.monotonic() - started:.0f} s")
    assert clicks <= CLICKS
    assert page.evaluate(SHOWN_SIZES) == [[80, 96]]
    assert page.evaluate(COMPARED), "before and after, drawn on the canvas"
    shoot(frontend, screenshots / "first photo.png")
    place = frontend.show_node("Before | after: move over the picture")
    middle = place["y"] + place["height"] / 2
    seen = []
    for x in (place["x"] + 2, place["x"] + place["width"] - 2):  # all of after, all of before
        page.mouse.move(x, middle)
        page.wait_for_timeout(500)
        seen.append(page.screenshot(clip=place))
    assert seen[0] != seen[1], "it follows the pointer"


def test_a_run_without_a_photo_marks_the_node(frontend: Frontend, screenshots: Path) -> None:
    frontend.open_template(PERSON)
    frontend.start()
    frontend.page.wait_for_function("Object.keys(app.lastNodeErrors ?? {}).length > 0")
    refused = frontend.page.evaluate("app.lastNodeErrors")
    assert {node["class_type"] for node in refused.values()} == {"LoadImage"}
    assert len(refused) == 4, "before anything is learned"
    assert all("no photo is chosen yet" in json.dumps(node) for node in refused.values())
    shoot(frontend, screenshots / "no photo.png")


def test_what_the_core_refuses_is_read_on_the_page(
    frontend: Frontend, photos: dict[str, Path], screenshots: Path
) -> None:
    frontend.open_template(PHOTO)
    give_pictures(frontend, photos)
    for sentence, values in REFUSED.items():
        frontend.set_widgets(RESTORE, longest_side=64, **values)
        assert sentence in frontend.failed()["exception_message"]
        shown = frontend.page.get_by_role("alert").filter(has_text=sentence)
        shown = shown.filter(has_text="Tiled Restore").first  # it says where, some frontends twice
        shown.wait_for()
        frontend.page.wait_for_timeout(1000)  # the sentence glides to its place
        frontend.page.screenshot(path=screenshots / f"refused {sentence}.png")


@pytest.mark.parametrize(
    ("name", "values"),
    [(ENLARGE, {RESTORE: {"scale": 4.0, "steps": 2, "tile_size": 128}}), (MEASURE, {})],
    ids=["enlarge", "measure"],
)
def test_a_template_runs_and_shows_its_picture(
    frontend: Frontend,
    photos: dict[str, Path],
    name: str,
    values: dict[str, dict[str, float]],
    screenshots: Path,
) -> None:
    frontend.open_template(name)
    give_pictures(frontend, photos)
    for node_type, chosen in values.items():
        frontend.set_widgets(node_type, **chosen)
    frontend.run()
    frontend.wait_for_images()
    shoot(frontend, screenshots / f"{name} run.png")
    if name == ENLARGE:
        assert frontend.page.evaluate(SHOWN_SIZES) == [[320, 384]]
    else:
        assert "identity similarity" in frontend.shown_text("Report")
        frontend.give_picture("The restored photo", photos["Photo 2 of the person"])
        run_as_app(frontend, screenshots, name)


@pytest.mark.parametrize("name", [PERSON])
def test_a_training_shows_its_preview_and_line_while_it_runs(
    frontend: Frontend, photos: dict[str, Path], name: str, screenshots: Path
) -> None:
    frontend.open_template(name)
    give_pictures(frontend, photos)
    # a seed of its own: two templates train alike, and a complete training is not done again
    frontend.set_widgets(TRAIN, **FEW, seed=TEMPLATES.index(name))
    frontend.watch(TRAIN)
    frontend.start()
    frontend.wait_for_preview()
    shoot(frontend, screenshots / f"{name} running.png")
    frontend.wait()
    frontend.wait_for_images()
    shoot(frontend, screenshots / f"{name} run.png")

    preview, texts = frontend.seen()
    assert preview == [768, 768], "three pictures and the loss curve, enlarged by the host"
    assert any(text.startswith("Preparing views") for text in texts)
    assert any("of 8, loss 0." in text and text.endswith(" left") for text in texts)


def test_the_people_of_a_group_photo_are_told_apart(
    frontend: Frontend, server: Server, tmp_path: Path, screenshots: Path
) -> None:
    folders = {"First": "family/anna", "Second": "family/ben"}
    for number, folder in enumerate(folders.values(), DRAWN_PERSON):
        portrait_folder(server.base / "input" / folder, number, 3)
    group = group_photo([DRAWN_PERSON, DRAWN_PERSON + 1, DRAWN_PERSON + 4], 96, 240, seed=6)
    to_pil_image(group.picture[0]).save(tmp_path / "family.png")
    frontend.open_template(FAMILY)
    for ordinal, folder in folders.items():
        title = f"{ordinal} person: a folder"
        frontend.set_widgets("LoadImageDataSetFromFolder", title=title, folder=folder)
    frontend.give_picture("The family photo", tmp_path / "family.png")
    frontend.set_widgets(TRAIN, **SMALL)
    frontend.run()
    frontend.wait_for_images()
    shoot(frontend, screenshots / f"{FAMILY} run.png")
    report = frontend.shown_text("Who is who")
    assert "3 people found" in report
    assert "Head 1 | Anna " in report
    frontend.set_widgets(PEOPLE, seed=1)
    run_as_app(frontend, screenshots, FAMILY)


@pytest.mark.parametrize("vue_nodes", [True], ids=["vue"])
def test_a_template_runs_as_an_app(
    frontend: Frontend, photos: dict[str, Path], vue_nodes: bool, screenshots: Path
) -> None:
    frontend.open_template(PHOTO)
    give_pictures(frontend, photos)
    frontend.set_widgets(RESTORE, longest_side=104)
    run_as_app(frontend, screenshots, PHOTO)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("Restore a photo", ["image"]), ("Restore a person", ["photos", "image"])],
    ids=["photo", "person"],
)
def test_a_blueprint_is_placed_and_runs(
    frontend: Frontend, photos: dict[str, Path], name: str, inputs: list[str], screenshots: Path
) -> None:
    values = {RESTORE: {"longest_side": 88}}
    if "photos" in inputs:
        values[TRAIN] = {**SMALL, "seed": 77}
    assert frontend.place_blueprint(name, values)[: len(inputs)] == inputs
    give_pictures(frontend, photos)
    frontend.run()
    frontend.wait_for_images()
    shoot(frontend, screenshots / f"blueprint {name}.png")
    assert frontend.page.evaluate(SHOWN_SIZES)[0][1] == 88
