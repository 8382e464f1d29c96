"""Measures the head detector on faces of photos that are set into scenes, and on empty pictures.

    python tools/evaluate_heads.py --photos FOLDER... --labels FILE --empty FOLDER... [--file FILE]

Runs in ComfyUI's environment (scripts/setup_host.py makes one). --labels is what
tools/label_heads.py wrote of the photos, of which none may have been in the training; --empty are
pictures without anybody. A head is found if a find and its box share at least 0.4 of their union;
finds of no head, and second ones of a head, are false. The height of a head is that from crown to
chin. Writes Markdown tables to OUT.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import repository  # noqa: F401
import torch
from evaluation.people import derive_seed
from evaluation.tables import interval_text, markdown_table
from setup_host import REPO
from torch import Tensor
from torchvision.ops import box_iou

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.drawn.groups import group_photo
from pfstorer_core.measures.intervals import clustered_interval
from pfstorer_core.people.detector import HEAD_DETECTOR_PATH, HeadDetector, load_head_finder
from pfstorer_core.pictures.photos import list_photos
from pfstorer_core.pictures.resizing import resize_bicubic
from pfstorer_core.training.head_backgrounds import background
from pfstorer_core.training.head_pasting import Person, Place, whole_view
from pfstorer_core.training.head_scenes import WHOLE, Sources, compose, head_box, spoilt
from pfstorer_core.training.head_shapes import read_shapes

BANDS = ((16, 32), (32, 64), (64, 128), (128, 256))  # px
TILTS = (0, 15, 30, 45)  # degrees
LEVELS = ("light", "medium", "extreme")
HEADS = 2  # of a scene
SAME = 0.4  # intersection over union
NEARLY_UPRIGHT = 8.0  # degrees
SMALLEST_SCENE, SCENE = 160, 7.0  # side in px, and in halves of a head's height
# her head in scikit-image's picture, as tools/label_heads.py labels it, in px
ASTRONAUT = (160.0, 20.0, 290.0, 190.0)

Change = Callable[[Tensor, float, torch.Generator], Tensor]  # picture, size of its heads


@dataclass(frozen=True)
class Case:
    """Scenes of one row.

    Attributes:
        band: heights of the heads in pixels.
        tilt: in degrees, to either side; None is nearly upright.
        change: what is done to the picture.
    """

    band: tuple[int, int]
    tilt: int | None = None
    change: Change | None = None


class Tally:
    """Which heads were found, and how many finds are false."""

    def __init__(self) -> None:
        self.found: list[list[float]] = []  # of each scene
        self.overlaps: list[float] = []
        self.false: list[float] = []

    def add(self, truth: Tensor, finds: Tensor) -> None:
        """Counts a picture with boxes (T, 4), given finds (N, 4), the surest first."""
        overlap = box_iou(finds, truth) if len(finds) else torch.zeros(0, len(truth))
        taken: set[int] = set()
        for row in overlap:
            free = [(float(row[k]), k) for k in range(len(truth)) if k not in taken]
            share, k = max(free, default=(0.0, 0))
            if share >= SAME:
                taken.add(k)
                self.overlaps.append(share)
        self.found.append([float(k in taken) for k in range(len(truth))])
        self.false.append(float(len(finds) - len(taken)))

    def cells(self) -> list[str]:
        """Returns how many heads there are, recall, overlap and false finds per picture."""
        flat = torch.tensor([sum(found) / len(found) for found in self.found])[:, None]
        heads = sum(map(len, self.found))
        overlap = sum(self.overlaps) / max(len(self.overlaps), 1)
        false = interval_text(clustered_interval(torch.tensor(self.false)[:, None]))
        return [f"{heads}", interval_text(clustered_interval(flat)), f"{overlap:.2f}", false]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the tables."""
    options = parse_options(arguments)
    finder = load_head_finder(options.file, **threshold_of(options))
    shapes = read_shapes(options.labels)
    people = [
        Person.of_photo(photo, shapes[f"{photo.folder}/{photo.name}"])
        for photo in list_photos(options.photos)
        if f"{photo.folder}/{photo.name}" in shapes
    ]
    empty = {photo.name: photo.load() for photo in list_photos(options.empty)}
    sources = Sources((), people, [p.mul(255).byte() for p in empty.values()], drawn_share=0.0)
    header = ["heads", "recall", "overlap of finds", "false finds per picture"]
    rows = [
        [name, *measured(finder, sources, case, options.scenes).cells()]
        for name, case in cases().items()
    ]
    rows.append(["photos as they are", *whole_photos(finder, people).cells()])
    rows.append(["drawn groups", *drawn_groups(finder, options.scenes).cells()])
    tables = [markdown_table(["scenes", *header], rows)]
    rows = [[name, *empty_cells(finder, [picture])] for name, picture in empty.items()]
    generator = torch.Generator().manual_seed(derive_seed("patterns", 0))
    drawn = [background((256, 256), (), generator) for _ in range(4 * options.scenes)]
    rows.append([f"{len(drawn)} patterns", *empty_cells(finder, drawn)])
    columns = ["pictures without anybody", "megapixels", "false finds"]
    tables += [markdown_table(columns, rows), astronaut(finder)]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "heads.md").write_text("\n".join(tables), encoding="utf-8")
    print("\n".join(tables))


def threshold_of(options: argparse.Namespace) -> dict[str, float]:
    """Returns the threshold as an argument, if one was given."""
    return {} if options.threshold is None else {"threshold": options.threshold}


def cases() -> dict[str, Case]:
    """Returns the rows by their names."""
    rows = {f"{low} to {high} px": Case((low, high)) for low, high in BANDS}
    rows |= {f"tilted by {tilt}°, 32 to 128 px": Case((32, 128), tilt) for tilt in TILTS}
    rows["grey, 32 to 128 px"] = Case((32, 128), change=grey)
    for level in LEVELS:
        for low, high in BANDS[:3]:
            rows[f"{level}, {low} to {high} px"] = Case((low, high), change=at_level(level))
    return rows


def grey(picture: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """A change: without colours."""
    return picture.mean(0, keepdim=True).expand(3, -1, -1)


def at_level(level: str) -> Change:
    """Returns a change: spoilt as portraits are."""
    return lambda picture, size, generator: spoilt(picture, size, PRESETS[level], generator)


def measured(finder: HeadDetector, sources: Sources, case: Case, scenes: int) -> Tally:
    """Looks for the heads of scenes."""
    tally = Tally()
    generator = torch.Generator().manual_seed(derive_seed(str(case.band), case.tilt or 0))
    for _ in range(scenes):
        low, high = case.band
        unit = low / 2 * (high / low) ** float(torch.rand((), generator=generator))
        side = max(SMALLEST_SCENE, round(SCENE * unit))
        composed = compose((side, side), sources, generator, places(case, unit, side, generator))
        picture = composed.picture
        if case.change is not None:
            picture = case.change(picture, WHOLE * unit, generator)
        boxes = [box for mask in composed.masks if (box := head_box(mask)) is not None]
        tally.add(torch.stack(boxes), find_boxes(finder, picture))
    return tally


def places(case: Case, unit: float, side: int, generator: torch.Generator) -> list[Place]:
    """Draws where the heads of a scene are: side by side, all in the picture."""
    found = []
    for k in range(HEADS):
        x, y, turn, flip = torch.rand(4, generator=generator).tolist()
        share = side / HEADS
        across = 1.2 * unit + x * (share - 2.4 * unit) + k * share
        down = 1.3 * unit + y * (side - 2.6 * unit)
        degrees = (2 * turn - 1) * NEARLY_UPRIGHT
        if case.tilt is not None:
            degrees = math.copysign(case.tilt, turn - 0.5)
        found.append(Place(across, down, unit, math.radians(degrees), flip < 0.5))
    return found


def whole_photos(finder: HeadDetector, people: Sequence[Person]) -> Tally:
    """Looks for the head of each photo, which fills it or is cut off by its border."""
    tally = Tally()
    generator = torch.Generator().manual_seed(0)
    for person in people:
        picture, mask = whole_view(person, person.shape.unit, generator)
        box = head_box(mask)
        assert box is not None  # each photo shows a head
        tally.add(box[None], find_boxes(finder, picture))
    return tally


def drawn_groups(finder: HeadDetector, scenes: int) -> Tally:
    """Looks for the heads of drawn groups of three."""
    tally = Tally()
    for k in range(scenes):
        photo = group_photo([1_000_000 + 3 * k + i for i in range(3)], 256, 640, seed=k)
        boxes = [box for mask in photo.masks if (box := head_box(mask)) is not None]
        tally.add(torch.stack(boxes), find_boxes(finder, photo.picture[0]))
    return tally


def find_boxes(finder: HeadDetector, picture: Tensor) -> Tensor:
    """Returns the boxes (N, 4) of all finds, the surest first."""
    heads = sorted(finder(picture), key=lambda head: -head.score)
    return torch.tensor([head.box for head in heads]).float().reshape(-1, 4)


def empty_cells(finder: HeadDetector, pictures: Sequence[Tensor]) -> list[str]:
    """Returns how much there was to search, and what was found: all of it false."""
    area = sum(picture[0].numel() for picture in pictures) / 1e6
    scores = [head.score for picture in pictures for head in finder(picture)]
    told = f"{len(scores)}" + (f" (score {max(scores):.2f} at most)" if scores else "")
    return [f"{area:.2f}", told]


def astronaut(finder: HeadDetector) -> str:
    """Returns a table of what is found in scikit-image's photo of Eileen Collins."""
    try:
        from skimage.data import astronaut as photo
    except ImportError:
        return "The astronaut was not measured: pip install scikit-image.\n"
    picture = torch.from_numpy(photo()).movedim(-1, 0).float() / 255
    rows = []
    for side in (512, 256, 128, 64):
        small = resize_bicubic(picture[None], (side, side))[0]
        for name, shown in (("as it is", small), ("grey", grey(small, 0, torch.Generator()))):
            boxes = find_boxes(finder, shown)
            truth = torch.tensor([ASTRONAUT]) * side / 512
            shares = box_iou(boxes, truth)[:, 0].tolist() if len(boxes) else []
            best = max(shares, default=0.0)
            false = len(shares) - (best >= SAME)
            rows.append([f"{side} px, {name}", f"{best:.2f}", f"{false}"])
    return markdown_table(["astronaut", "overlap with her head", "false finds"], rows)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="one head in each")
    parser.add_argument("--labels", type=Path, required=True, help="where the heads are")
    parser.add_argument("--empty", type=Path, nargs="+", required=True, help="without anybody")
    parser.add_argument("--file", type=Path, default=HEAD_DETECTOR_PATH, help="the detector")
    parser.add_argument("--threshold", type=float, help="smallest score of a find")
    parser.add_argument("--scenes", type=int, default=60, help="of each row")
    parser.add_argument("--out", type=Path, default=REPO / "runs" / "heads")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
