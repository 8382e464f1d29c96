"""How templates are laid out: from left to right, nothing over anything else."""

import json
from pathlib import Path
from typing import Any

import pytest
from labels import ENGLISH, labels_of
from layouts import box_of, frame_of, misplaced
from setup_host import REPO

TEMPLATES = sorted((REPO / "example_workflows").glob("*.json"))
SLOT, FIRST_SLOT = 20, 14  # px between two slots; of the first below the node's place
SAMPLES = 60  # points of a link
WIDEST, HIGHEST = 1850, 1160  # px: then the view opens at .572 or more, and all text is drawn
SCREEN, VIEW, MARGIN = (1440, 900), 0.75, 20  # px, and the part of it that the opened view fills
MINIMAP = (1184, 642)  # px: its left upper corner, with the buttons below it to the screen's corner
# px high: what nodes grow to when they show a photo, what they learn or what they restored
ROOM = {
    "LoadImage": 314,
    "SaveImage": 270,
    "PFStorerTrainIdentityAdapter": 440,
    "PFStorerTiledRestore": 528,
    "PFStorerRestorePeople": 636,
    "PFStorerCompare": 492,
}
RAW = {"image", "folder", "name", "text", "seed"}  # say nothing to who sees a form alone


def ends_of(link: list[Any], nodes: dict[int, dict[str, Any]]) -> tuple[float, float, float, float]:
    """Returns where a link begins and ends, as the canvas draws slots without widgets."""
    start, end = nodes[link[1]], nodes[link[3]]
    x0, y0 = start["pos"][0] + start["size"][0], start["pos"][1] + FIRST_SLOT + SLOT * link[2]
    return x0, y0, end["pos"][0], end["pos"][1] + FIRST_SLOT + SLOT * link[4]


def curve(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """Returns points of the canvas's curve, whose handles are a quarter of the distance long."""
    reach = 0.25 * ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    points = []
    for k in range(SAMPLES + 1):
        t = k / SAMPLES
        u = 1 - t
        x = u**3 * x0 + 3 * u * u * t * (x0 + reach) + 3 * u * t * t * (x1 - reach) + t**3 * x1
        points.append((x, (u**3 + 3 * u * u * t) * y0 + (3 * u * t * t + t**3) * y1))
    return points


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    path: Path = request.param
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_nothing_overlaps_and_all_of_it_fits_on_a_screen(workflow: dict[str, Any]) -> None:
    assert misplaced(workflow) == []
    frames = [frame_of(group) for group in workflow["groups"]]
    everything = [*map(box_of, workflow["nodes"]), *frames]
    assert max(b[2] for b in everything) - min(b[0] for b in everything) <= WIDEST
    assert max(b[3] for b in everything) - min(b[1] for b in everything) <= HIGHEST


def test_nodes_have_room_for_what_they_show(workflow: dict[str, Any]) -> None:
    nodes = workflow["nodes"]
    assert [n["title"] for n in nodes if n["size"][1] < ROOM.get(n["type"], 0)] == []


@pytest.mark.parametrize("of_groups", [False, True], ids=["opened", "fitted"])
def test_the_minimap_hides_no_node(workflow: dict[str, Any], of_groups: bool) -> None:
    boxes = {node["title"]: box_of(node) for node in workflow["nodes"]}
    seen = [*boxes.values(), *(frame_of(group) for group in workflow["groups"] if of_groups)]
    begin = [min(box[axis] for box in seen) for axis in (0, 1)]
    end = [max(box[axis + 2] for box in seen) for axis in (0, 1)]
    scale = min(VIEW * SCREEN[k] / (end[k] - begin[k] + MARGIN) for k in (0, 1))
    corner = [(begin[k] + end[k]) / 2 + (MINIMAP[k] - SCREEN[k] / 2) / scale for k in (0, 1)]
    assert [n for n, box in boxes.items() if box[2] > corner[0] and box[3] > corner[1]] == []


def test_links_go_to_the_right_and_behind_no_node(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link in workflow["links"]:
        x0, y0, x1, y1 = ends_of(link, nodes)
        names = f"{nodes[link[1]]['title']} -> {nodes[link[3]]['title']}"
        assert x1 > x0, names
        for number, node in nodes.items():
            left, top, right, bottom = box_of(node)
            hit = [p for p in curve(x0, y0, x1, y1) if left < p[0] < right and top < p[1] < bottom]
            assert number in (link[1], link[3]) or not hit, f"{names} behind {node['title']}"


def test_groups_are_numbered_from_the_left_and_one_note_is_orange(workflow: dict[str, Any]) -> None:
    titles = [group["title"] for group in workflow["groups"]]
    assert [title.split()[0] for title in titles] == [str(k + 1) for k in range(len(titles))]
    assert len(titles) >= 2
    assert [n["type"] for n in workflow["nodes"] if n.get("color") == "#432"] == ["MarkdownNote"]


def test_a_template_is_an_app_too(workflow: dict[str, Any]) -> None:
    chosen = workflow["extra"]["linearData"]
    types = {node["id"]: node["type"] for node in workflow["nodes"]}
    assert 1 <= len(chosen["inputs"]) <= 6 and chosen["outputs"]
    assert all(number in types for number, _ in chosen["inputs"])
    assert all(number in types for number in chosen["outputs"])
    shown = {types[number] for number in chosen["outputs"]}
    assert "ImageCompare" not in shown, "an app shows its pictures one by one, the bad one first"
    pictures = {("LoadImage", "image"), ("LoadImageDataSetFromFolder", "folder")}
    assert pictures & {(types[number], name) for number, name in chosen["inputs"]}


def test_an_app_names_what_it_asks_for(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    labels = []
    for number, name in workflow["extra"]["linearData"]["inputs"]:
        node = nodes[number]
        own = {i["name"]: i["label"] for i in node["inputs"] if "label" in i}
        labels.append(own.get(name) or labels_of(ENGLISH)[node["type"]]["inputs"][name]["name"])
    assert len(set(labels)) == len(labels), "two of one name"
    assert [label for label in labels if "_" in label or label in RAW] == []


def test_the_page_knows_the_photos_and_pictures_of_a_template(workflow: dict[str, Any]) -> None:
    """nodes/web/photos.js and nodes/web/compare.js leave the nodes of others as they are."""
    named = [n for n in workflow["nodes"] if n["type"] in ("LoadImage", "ImageCompare")]
    assert named and all(node["properties"]["pfstorer_template"] is True for node in named)
