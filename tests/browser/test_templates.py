from pathlib import Path

import pytest
from comfyui_client import REPO
from comfyui_frontend import Frontend

TEMPLATES = sorted(path.stem for path in (REPO / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_runs_and_shows_its_picture(
    frontend: Frontend, name: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    frontend.open_template(name)
    assert frontend.missing_nodes() == []
    frontend.run()
    frontend.wait_for_images()

    folder = Path(pytestconfig.getoption("screenshots") or tmp_path)
    frontend.screenshot(folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size > 10_000, "an empty page compresses to less"
