from pathlib import Path

import pytest
import torch
from comfyui_frontend import Frontend
from setup_host import REPO
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set

TEMPLATES = sorted(path.stem for path in (REPO / "example_workflows").glob("*.json"))
TRAINING = ["family_photo", "group_photo", "personalized_restore", "train_identity"]
TRAIN, RESTORE = "PFStorerTrainIdentityAdapter", "PFStorerTiledRestore"
FEW = {"steps": 24, "views_per_photo": 2, "preview_every": 8}
SMALLER = {  # by template, node type and widget: what else would take minutes
    "tiled_4k": {
        "PFStorerDemoAlbum": {"columns": 7, "rows": 4},
        "ImageScale": {"width": 256},
        RESTORE: {"longest_side": 1024, "tile_size": 256, "steps": 2},
    },
}
REPORTS = {  # by template: node with a report and what it says
    "measure": ("Compare Restorations", ["restored", "references among themselves"]),
    "tiled_4k": ("Tiled Restore", ["1024 x ", " tiles of "]),
    "family_photo": ("Restore People", ["3 people found", "Head 1 | Anna "]),
    "group_photo": (
        "Restore with the adapters",
        ["Identity 1 (person 1), gamma 1: mask of ", "Identity 2 (person 2), gamma 1: mask of "],
    ),
}
SHOWN_SIZES = """() => app.graph._nodes.find(n => n.type === "SaveImage").imgs.map(
    image => [image.naturalWidth, image.naturalHeight]
)"""


@pytest.fixture
def screenshots(tmp_path: Path, pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("screenshots") or tmp_path)


def check_report(frontend: Frontend, name: str) -> None:
    """Checks that the node and the core's text node show the report."""
    title, parts = REPORTS[name]
    for shown in (frontend.shown_text(title), frontend.shown_text("Report")):
        assert [part for part in parts if part not in shown] == [], shown


def shoot(frontend: Frontend, path: Path) -> None:
    frontend.screenshot(path)
    assert path.stat().st_size > 10_000, "an empty page compresses to less"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in TRAINING])
def test_a_template_opens_runs_and_shows_its_picture(
    frontend: Frontend, name: str, screenshots: Path
) -> None:
    frontend.open_template(name)
    assert frontend.missing_nodes() == []
    for node_type, values in SMALLER.get(name, {}).items():
        frontend.set_widgets(node_type, **values)
    frontend.run()
    frontend.wait_for_images()
    shoot(frontend, screenshots / f"{name}.png")
    if name in REPORTS:
        check_report(frontend, name)


def test_a_dropped_photo_is_restored_at_the_first_queue(
    frontend: Frontend, tmp_path: Path, screenshots: Path
) -> None:
    frontend.open_template("restore_photo")
    photo = tmp_path / "photo.jpeg"
    portrait = portrait_set(5_000_000, 1, 1, 96)[..., :80]  # (1, 3, 96, 80)
    spoilt = degrade(portrait, PRESETS["medium"], torch.Generator().manual_seed(0))
    to_pil_image(spoilt[0]).save(photo)
    frontend.drop_picture(photo)
    for title, name in (("Tiled Restore", "image"), ("Low quality", "images")):
        frontend.connect("LoadImage", title, name)
    frontend.run()
    frontend.wait_for_images()
    shoot(frontend, screenshots / "restore_photo_own.png")
    (size,) = frontend.page.evaluate(SHOWN_SIZES)
    assert size == [80, 96]


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_shows_its_preview_and_line_while_it_runs(
    frontend: Frontend, name: str, screenshots: Path
) -> None:
    frontend.open_template(name)
    assert frontend.missing_nodes() == []
    # a seed of its own: two templates train alike, and a complete training is not done again
    frontend.set_widgets(TRAIN, **FEW, seed=TRAINING.index(name))
    frontend.watch(TRAIN)
    frontend.start()
    frontend.wait_for_preview()
    shoot(frontend, screenshots / f"{name}_running.png")
    frontend.wait()
    frontend.wait_for_images()
    shoot(frontend, screenshots / f"{name}.png")

    preview, texts = frontend.seen()
    assert preview == [768, 384], "the loss curve above three pictures, enlarged by the host"
    assert any(text.startswith("Preparing views") for text in texts)
    assert any("of 24, loss 0." in text and text.endswith(" left") for text in texts)
    if name in REPORTS:
        check_report(frontend, name)


def test_a_training_keeps_its_seed_so_that_it_can_be_taken_up(frontend: Frontend) -> None:
    names = frontend.page.evaluate(
        "type => LiteGraph.createNode(type).widgets.map(widget => widget.name)", TRAIN
    )
    assert "seed" in names
    assert "control_after_generate" not in names
