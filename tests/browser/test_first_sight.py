"""What of a node is seen at first, and what becomes of values that are not."""

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_frontend import Frontend
from labels import ENGLISH, labels_of
from setup_host import REPO

NODES = sorted(labels_of(ENGLISH))
MOST = 8  # widgets
TRAIN, RESTORE = "PFStorerTrainIdentityAdapter", "PFStorerTiledRestore"
STEPS = 4  # place of the steps among the values
KEPT = sorted((REPO / "tests" / "kept").glob("*/workflows/*.json"))


def inputs_of(prompt: dict[str, Any]) -> dict[str, Any]:
    """Returns what matters of a prompt: types and inputs by id."""
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


@pytest.fixture
def screenshots(tmp_path: Path, pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("screenshots") or tmp_path)


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_few_widgets_are_seen_at_first(
    frontend: Frontend, vue_nodes: bool, screenshots: Path
) -> None:
    seen = {}
    for node_type in NODES:
        frontend.put_alone(node_type)
        if node_type == TRAIN:
            names = frontend.page.evaluate("app.graph._nodes[0].widgets.map(w => w.name)")
            assert "seed" in names and "control_after_generate" not in names, "it is taken up by it"
        frontend.page.wait_for_timeout(200)
        seen[node_type] = frontend.widgets_seen()
    assert {name: count for name, count in seen.items() if count > MOST} == {}
    assert seen[RESTORE] >= 4 and seen[TRAIN] >= 3, "what everybody decides is there"
    frontend.put_alone(RESTORE)
    frontend.page.wait_for_timeout(500)
    name = "vue" if vue_nodes else "canvas"
    frontend.screenshot(screenshots / f"first_sight_{name}.png")
    if vue_nodes:
        frontend.page.get_by_test_id("advanced-inputs-button").click()
    else:
        frontend.page.evaluate("app.graph._nodes[0].widgets.at(-1).callback()")
    frontend.page.wait_for_timeout(500)
    frontend.screenshot(screenshots / f"all_widgets_{name}.png")
    assert frontend.widgets_seen() >= 19


def test_workflows_of_earlier_versions_open_with_their_values(frontend: Frontend) -> None:
    assert len(KEPT) >= 6
    for path in KEPT:
        frontend.load(json.loads(path.read_text()))
        assert frontend.missing_nodes() == []
        kept = json.loads((path.parent / "api" / path.name).read_text())
        assert inputs_of(frontend.prompt()) == inputs_of(kept), path


def test_a_value_that_was_changed_is_not_hidden(frontend: Frontend) -> None:
    workflow = json.loads((KEPT[0].parent / "restore_photo.json").read_text())
    (node,) = (node for node in workflow["nodes"] if node["type"] == RESTORE)
    shown = f"app.graph._nodes.find(n => n.type === '{RESTORE}').showAdvanced"
    for steps, seen in ((20, False), (8, True)):  # as it comes, and as that template had it
        node["widgets_values"][STEPS] = steps
        frontend.load(workflow)
        assert frontend.page.evaluate(shown) == seen
    again = frontend.page.evaluate("app.graph.serialize()")
    frontend.load(again)
    (saved,) = (node for node in again["nodes"] if node["type"] == RESTORE)
    assert saved["widgets_values"][: len(node["widgets_values"])] == node["widgets_values"]
    assert frontend.page.evaluate(shown), "as it was saved"
