from pathlib import Path

import pytest
from comfyui_client import REPO
from comfyui_frontend import Frontend

TEMPLATES = sorted(path.stem for path in (REPO / "example_workflows").glob("*.json"))
TRAINING = ["personalized_restore", "train_identity"]
TRAIN = "PFStorerTrainIdentityAdapter"
FEW = {"steps": 24, "views_per_photo": 2, "preview_every": 8}


@pytest.fixture
def screenshots(tmp_path: Path, pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("screenshots") or tmp_path)


def shoot(frontend: Frontend, path: Path) -> None:
    frontend.screenshot(path)
    assert path.stat().st_size > 10_000, "an empty page compresses to less"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in TRAINING])
def test_a_template_opens_runs_and_shows_its_picture(
    frontend: Frontend, name: str, screenshots: Path
) -> None:
    frontend.open_template(name)
    assert frontend.missing_nodes() == []
    frontend.run()
    frontend.wait_for_images()
    shoot(frontend, screenshots / f"{name}.png")


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_shows_its_preview_and_line_while_it_runs(
    frontend: Frontend, name: str, screenshots: Path
) -> None:
    frontend.open_template(name)
    assert frontend.missing_nodes() == []
    frontend.set_widgets(TRAIN, **FEW)
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


def test_a_training_keeps_its_seed_so_that_it_can_be_taken_up(frontend: Frontend) -> None:
    names = frontend.page.evaluate(
        "type => LiteGraph.createNode(type).widgets.map(widget => widget.name)", TRAIN
    )
    assert "seed" in names
    assert "control_after_generate" not in names
