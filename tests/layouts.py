"""Where a workflow's nodes and groups lie, in a file or as the page has it."""

from itertools import combinations
from typing import Any

TITLE = 30  # px above a node's place
Box = tuple[float, float, float, float]  # left, top, right, bottom


def box_of(node: dict[str, Any]) -> Box:
    """Returns the box of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def frame_of(group: dict[str, Any]) -> Box:
    """Returns the box of a group."""
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share a place."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def within(a: Box, b: Box) -> bool:
    """Whether one box lies in another."""
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def misplaced(workflow: dict[str, Any]) -> list[str]:
    """Returns which nodes lie over each other or over a group's edge, and which groups overlap."""
    boxes = [(node.get("title", node["type"]), box_of(node)) for node in workflow["nodes"]]
    frames = [(group["title"], frame_of(group)) for group in workflow["groups"]]
    over = [
        f"{one} over {other}"
        for places in (boxes, frames)
        for (one, a), (other, b) in combinations(places, 2)
        if overlap(a, b)
    ]
    edges = [
        f"{node} over the edge of {group}"
        for node, box in boxes
        for group, frame in frames
        if overlap(box, frame) and not within(box, frame)
    ]
    return over + edges
