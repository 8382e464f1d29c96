from pathlib import Path

import pytest
from comfyui_frontend import Frontend
from labels import ENGLISH, labels_of, other_languages

NODES = sorted(labels_of(ENGLISH))
SHOWN = "PFStorerApplyPersonalization"  # also in the other languages
PICTURES = 3  # on its page
HEADINGS = 5  # of every page, at least


@pytest.fixture
def screenshots(tmp_path: Path, pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("screenshots") or tmp_path)


def open_help(frontend: Frontend, node_id: str, language: str) -> int:
    """Opens a node's help, checks it and returns the number of its pictures."""
    shown = frontend.open_help(node_id, labels_of(language)[node_id]["display_name"])
    assert len(shown["headings"]) >= HEADINGS, node_id
    assert shown["broken"] == []
    assert shown["marks"] == []
    return int(shown["images"])


def test_the_help_of_every_node_opens_with_its_pictures(
    frontend: Frontend, screenshots: Path
) -> None:
    pictures = {node_id: open_help(frontend, node_id, ENGLISH) for node_id in NODES}
    assert [node_id for node_id, count in pictures.items() if not count] == [
        "PFStorerConditionOnLQ",
        "PFStorerLoadCFW",
        "PFStorerSaveIdentity",
    ]
    assert open_help(frontend, SHOWN, ENGLISH) == PICTURES
    frontend.screenshot(screenshots / "help.png")


@pytest.mark.parametrize("locale", other_languages())
def test_labels_and_help_are_shown_in_another_language(
    frontend: Frontend, locale: str, screenshots: Path
) -> None:
    for node_id in NODES:
        open_help(frontend, node_id, locale)
    assert open_help(frontend, SHOWN, locale) == PICTURES
    labels = labels_of(locale)[SHOWN]
    assert frontend.labels() == {
        "title": labels["display_name"],
        "inputs": {name: label["name"] for name, label in labels["inputs"].items()},
    }
    frontend.screenshot(screenshots / f"help_{locale}.png")
