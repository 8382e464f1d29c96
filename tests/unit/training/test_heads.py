"""Tests of the head detector's training; what it learned is tested with `people.detector`."""

import torch

from pfstorer_core.people.network import STRIDE, HeadNetwork, HeadNetworkConfig
from pfstorer_core.training.head_pasting import Person
from pfstorer_core.training.head_scenes import (
    FIRST_IDENTITY,
    FOUND,
    IGNORED,
    MASK,
    MOST_HEADS,
    SIZE,
    Scenes,
    Sources,
    make_scenes,
)
from pfstorer_core.training.heads import (
    cell_boxes,
    head_loss,
    head_objective,
    middles,
    mirrored,
    network_input,
    targets,
)

CELLS = SIZE // STRIDE


def scene_of(kind: int, box: tuple[float, float, float, float]) -> Scenes:
    """Returns one scene with one head."""
    boxes = torch.zeros(1, MOST_HEADS, 4)
    boxes[0, 0] = torch.tensor(box)
    kinds = torch.zeros(1, MOST_HEADS, dtype=torch.uint8)
    kinds[0, 0] = kind
    masks = torch.zeros(1, MOST_HEADS, MASK, MASK, dtype=torch.uint8)
    pictures = torch.full((1, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    return Scenes(pictures, torch.tensor([[0, 8, SIZE, SIZE]]).short(), boxes, kinds, masks)


def test_scores_shall_be_one_in_the_middle_only() -> None:
    bumps, owners = targets(scene_of(FOUND, (20, 40, 40, 64)), (CELLS, CELLS))
    assert bumps.shape == (1, CELLS, CELLS)
    assert bumps[0, 13, 7] == 1 and owners[0, 13, 7] == 0
    assert (bumps == 1).sum() == 1
    assert bumps[0, 20, 20] < 1e-3
    ignored, _ = targets(scene_of(IGNORED, (20, 40, 40, 64)), (CELLS, CELLS))
    assert ignored.max() == 0


def test_boxes_are_distances_from_the_middle_of_a_cell() -> None:
    row, column = middles(torch.tensor([[20.0, 40, 40, 64]]), (CELLS, CELLS))
    assert (row.item(), column.item()) == (13, 7)
    boxes = cell_boxes(torch.tensor([[10.0, 14, 10, 10]]), row, column)
    assert boxes.tolist() == [[20, 40, 40, 64]]


def test_the_picture_ends_at_its_border() -> None:
    given = network_input(scene_of(FOUND, (20, 40, 40, 64)))
    assert given.shape == (1, 4, SIZE, SIZE)
    assert given[0, 3, :8].sum() == 0 and bool((given[0, 3, 8:] == 1).all())


def test_mirrored_scenes_keep_their_heads(generator: torch.Generator) -> None:
    scene = scene_of(FOUND, (20, 40, 40, 64))
    scene.pictures[0, 0, 40:64, 20:40] = 255
    scenes = Scenes(*(torch.cat([values] * 16) for values in scene))
    turned = mirrored(scenes, generator)
    lefts = set()
    for k in range(16):
        left, top, right, bottom = turned.boxes[k, 0].long().tolist()
        assert bool((turned.pictures[k, 0, top:bottom, left:right] == 255).all())
        lefts.add(left)
    assert lefts == {20, SIZE - 40}


def test_what_is_not_asked_for_costs_nothing() -> None:
    """A sure find where a head is that is too small or hidden is no mistake."""

    class Sure(HeadNetwork):
        def forward(self, pictures: torch.Tensor):  # type: ignore[no-untyped-def]
            maps = super().forward(pictures)
            scores = torch.full_like(maps.scores, -9.0)
            scores[:, 12, 7] = 4.0
            return maps._replace(scores=scores)

    network = Sure(HeadNetworkConfig(widths=(4, 4, 8), blocks=(1, 1), features=8))
    _, ignored = head_loss(network, scene_of(IGNORED, (20, 40, 40, 64)))
    _, elsewhere = head_loss(network, scene_of(IGNORED, (60, 40, 80, 64)))
    assert ignored["scores"] < 0.01 < elsewhere["scores"]


def test_a_training_lowers_the_loss(generator: torch.Generator) -> None:
    people = [Person.drawn(FIRST_IDENTITY + k, generator) for k in range(2)]
    objective = head_objective(make_scenes(12, Sources(people), generator), batch=6)
    torch.manual_seed(0)
    network = HeadNetwork(HeadNetworkConfig(widths=(8, 8, 16), blocks=(1, 1), features=16))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(14):
        loss, _ = objective(network, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
