"""Labels where the heads of portraits are, for the training and measuring of the head detector.

    python tools/label_heads.py --photos FOLDER... [--centred NAME...] --out FILE

Runs in ComfyUI's environment (scripts/setup_host.py makes one) with requirements-dev.txt, whose
dlib finds faces and their landmarks. Photos have one face each; one whose face is not found is left
out. In folders named with --centred all faces have nearly the same place, which is then taken for
those that are not found, turned away ones for instance.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path

import repository  # noqa: F401
from evaluation.faces import FaceFinder

from pfstorer_core.pictures.photos import list_photos
from pfstorer_core.training.head_shapes import HeadShape, write_shapes


def main() -> None:
    """Labels all photos and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders, tar files")
    parser.add_argument("--centred", nargs="*", default=(), help="names of folders")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.json)")
    options = parser.parse_args()
    finder = FaceFinder()
    shapes: dict[str, HeadShape] = {}
    missed: dict[str, list[str]] = {}
    for photo in list_photos(options.photos):
        face = finder.find(photo.load())
        if face is None:
            missed.setdefault(photo.folder, []).append(f"{photo.folder}/{photo.name}")
        else:
            shapes[f"{photo.folder}/{photo.name}"] = HeadShape.from_points(face.points)
    for folder in options.centred:
        found = [shape for name, shape in shapes.items() if name.startswith(f"{folder}/")]
        shapes |= {name: middle_shape(found) for name in missed.pop(folder, [])}
    write_shapes(shapes, options.out)
    print(f"{len(shapes)} labelled, {sum(map(len, missed.values()))} left out")


def middle_shape(shapes: list[HeadShape]) -> HeadShape:
    """Returns the shape with the medians of all values."""
    rows = zip(*map(dataclasses.astuple, shapes), strict=True)
    return HeadShape(*(statistics.median(row) for row in rows))


if __name__ == "__main__":
    main()
