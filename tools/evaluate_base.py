"""Measures a bundled restorer on faces that no training saw: drawn ones, or photos of yours.

    python tools/evaluate_base.py --out docs/mini_restorer     # procedural portraits
    python tools/evaluate_base.py --photos FOLDER --face-shares 0.25 0.5 1 --steps 4 8 \\
        --recognition MobileFaceNet.tflite

Runs in ComfyUI's environment (scripts/setup_host.py makes one). Writes Markdown tables, a CSV with
every picture's figures, and contact sheets. PSNR, SSIM, HaarPSI (a weights-free perceptual measure,
1 is equal) and the grid of 4 px (see evaluation/grid.py, 0 dB is none) of the LQ picture (scaled up
bicubically), the restored one and the autoencoder's round trip, against the clean picture. LPIPS is
added where its backbone weights are on the machine; --recognition adds the similarity to the clean
face and the distance of the landmarks to the clean picture's.

--photos takes folders or tar files, at best with a folder per source, each photo of another person.
For each of --face-shares the largest face is put into the middle of a square, so that its height is
that share of the side; where the photo ends the rest is filled by reflection. The height is that
from the hairline to the chin, taken as 1.5 times that from the brows to the chin, of dlib's
landmarks. Photos in which no face is found are left out, and at each share those that would have to
be scaled up by more than --max-upscale.

Intervals are 95% bootstraps over people. Differences are paired, picture by picture.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import repository  # noqa: F401
import torch
from evaluation.face_measures import FaceMeasures, described
from evaluation.faces import Face, FaceFinder, window_of_face
from evaluation.grid import GRID, grid_energy
from evaluation.people import FIRST_IDENTITY
from evaluation.recognition import Recognition, load_recognition
from evaluation.sampling import (
    add_sampling_options,
    restore_pictures,
    sampling_settings,
    sampling_text,
)
from evaluation.tables import (
    LEVELS,
    Figures,
    contact_sheet,
    interval_text,
    markdown_table,
    quality_measures,
    write_csv,
)
from in_process import use_comfyui
from setup_host import REPO
from torch import Tensor

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import render, sample_identities, sample_views
from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.photos import list_photos
from pfstorer_core.pictures.views import ViewConfig

SIZE = 128
DRAWN = "drawn portraits"
LQ, ROUND_TRIP = "LQ", "round trip"
SHEET_PICTURES = 10
FEWEST = 4  # pictures of a source that get a row of their own


@dataclass(frozen=True)
class Scene:
    """Clean pictures that are measured together.

    Attributes:
        name: what they show.
        clean: (N, 3, SIZE, SIZE) in [0, 1].
        people: N names; pictures of one person are not independent.
        sources: N names of where they come from.
        faces: N places; none where they are not looked for.
    """

    name: str
    clean: Tensor
    people: list[str]
    sources: list[str]
    faces: list[Face]


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--restorer", type=Path, help="a bundled restorer; the mini restorer by default")
    out = REPO / "output" / "evaluation"
    add("--out", type=Path, default=out, help="folder of the results")
    add("--identities", type=int, default=48, help="procedural people")
    add("--views", type=int, default=2, help="pictures per procedural person")
    add("--photos", type=Path, nargs="+", help="folders or tar files of photos instead")
    add("--face-shares", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    add("--pictures", type=int, help="photos drawn at random; all by default")
    add("--max-upscale", type=float, default=ViewConfig().max_upscale)
    add(
        "--recognition",
        nargs="+",
        default=[],
        metavar="NETWORK",
        help="measures faces of photos: MobileFaceNet's .tflite, an ArcFace .onnx, dlib",
    )
    add("--steps", type=int, nargs="+", default=[8], help="of the sampling")
    add("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    add("--seed", type=int, default=0, help="of photos, views, degradations and noise")
    add_sampling_options(parser, color_fix="wavelet")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use_comfyui(progress_bars=False)
    try:
        run(options)
    except PFStorerError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    """Measures every scene and writes the results."""
    from pfstorer_core.host.load.folders import MINI_RESTORER_PATH
    from pfstorer_core.host.load.restorer import load_base_restorer

    networks = [load_recognition(name) for name in options.recognition] if options.photos else []
    finder = FaceFinder() if options.photos else None
    generator = torch.Generator().manual_seed(options.seed)
    if finder is not None:
        scenes = photo_scenes(options, finder, generator)
    else:
        scenes = iter([drawn_scene(options, generator)])
    model, _, vae = load_base_restorer(options.restorer or MINI_RESTORER_PATH)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    parts = [header(options, networks)]
    for scene in scenes:
        faces = None
        if networks:
            faces = FaceMeasures(networks, finder, scene.clean, scene.faces)
        figures, sheet = measure(scene, model, vae, faces, options, generator)
        for row in figures.rows:
            own = {"scene": scene.name, "source": scene.sources[row["picture"]]}
            rows.append(own | row)
        sheet.save(options.out / f"{scene.name.replace(' ', '_')}.png")
        parts += [
            f"## {scene.name}, {len(scene.clean)} pictures\n",
            means_table(figures),
            "Restored against the LQ picture, and the pictures in which it is higher:\n",
            differences_table(figures),
        ]
        if options.photos:
            parts += ["The same of each source:\n", sources_table(figures, scene.sources)]
        write_csv(options.out / "pictures.csv", rows)
        (options.out / "table.md").write_text("\n".join(parts))
    print("\n".join(parts))


def drawn_scene(options: argparse.Namespace, generator: torch.Generator) -> Scene:
    """Draws portraits of identities that no training saw."""
    numbers = [FIRST_IDENTITY + k for k in range(options.identities) for _ in range(options.views)]
    views = sample_views(len(numbers), generator)
    clean = render(sample_identities(numbers), views, SIZE)  # (N, 3, SIZE, SIZE)
    return Scene(DRAWN, clean, [str(number) for number in numbers], [DRAWN] * len(numbers), [])


def photo_scenes(
    options: argparse.Namespace, finder: FaceFinder, generator: torch.Generator
) -> Iterator[Scene]:
    """Yields the photos with their faces at each share of the frame.

    Raises:
        PFStorerError: no photos, or too few that can be used.
    """
    photos = list_photos(options.photos)
    order = torch.randperm(len(photos), generator=generator).tolist()
    chosen = [photos[k] for k in sorted(order[: options.pictures])]
    found = []
    for k, photo in enumerate(chosen):
        pixels = photo.load()
        face = finder.find(pixels)
        if face is not None:
            found.append((f"{k} {photo.name}", photo.folder, pixels, face))
    logging.warning("faces found in %d of %d photos", len(found), len(chosen))
    for share in options.face_shares:
        windows = [
            (name, source, *window_of_face(pixels, face, share, SIZE))
            for name, source, pixels, face in found
        ]
        windows = [window for window in windows if window[-1] <= options.max_upscale]
        if len(windows) < 2:
            raise PFStorerError(
                f"{len(windows)} of {len(found)} faces are large enough for a share of {share:g}; "
                "give more or larger photos, or raise --max-upscale."
            )
        names, sources, squares, faces, _ = zip(*windows, strict=True)
        yield Scene(
            f"face {share:g}", torch.stack(squares), list(names), list(sources), list(faces)
        )


def measure(
    scene: Scene,
    model: Any,
    vae: Any,
    faces: FaceMeasures | None,
    options: argparse.Namespace,
    generator: torch.Generator,
) -> tuple[Figures, Any]:
    """Degrades, restores and measures a scene's pictures.

    Returns:
        The figures, numbered by picture, and a contact sheet.
    """
    measures = {**quality_measures(), GRID: grid_energy}
    clean = scene.clean
    figures = Figures()
    with torch.no_grad():
        # (N, 3, SIZE, SIZE)
        round_trip = vae.decode(vae.encode(clean.movedim(1, -1))).movedim(-1, 1).clamp(0, 1).cpu()
    sheet = [("clean", clean[:SHEET_PICTURES])]
    for level in options.levels:
        lq = degrade(clean, PRESETS[level], generator)
        settings = {**sampling_settings(options), "seed": options.seed}
        pictures = {LQ: lq}
        for steps in options.steps:
            pictures[restored(steps)] = restore_pictures(model, vae, lq, steps=steps, **settings)
        sheet += [(f"{level}: {kind}", x[:SHEET_PICTURES]) for kind, x in pictures.items()]
        pictures[ROUND_TRIP] = round_trip
        for kind, images in pictures.items():
            values = {name: measured(images, clean) for name, measured in measures.items()}
            if faces is not None:
                values |= faces(images)
            for k, person in enumerate(scene.people):
                figures.add(level, kind, person, {name: v[k : k + 1] for name, v in values.items()})
                figures.rows[-1]["picture"] = k
    return figures, contact_sheet(sheet, [str(k) for k in range(len(sheet[0][1]))])


def restored(steps: int) -> str:
    """Returns the kind of picture that a number of steps gives."""
    return f"restored, {steps} steps"


def header(options: argparse.Namespace, networks: Sequence[Recognition]) -> str:
    """Returns what the tables are about."""
    if options.photos:
        what = (
            f"Photos in which the face is as high as a share of the frame of {SIZE} px, "
            "hairline to chin"
        )
    else:
        what = f"Portraits of {options.identities} identities that no training saw"
    steps = " or ".join(str(steps) for steps in options.steps)
    judged = f" Similarity: cosine by {described(networks)}." if networks else ""
    return (
        f"{what}; {sampling_text(options, steps)}.{judged} Mean [95% bootstrap interval over "
        "people].\n"
    )


def means_table(figures: Figures) -> str:
    """Returns the table of means per level and kind of picture."""
    measures = figures.measures()
    rows = [
        [level, kind, *(interval_text(figures.mean(level, kind, m), m) for m in measures)]
        for level in figures.levels()
        for kind in figures.kinds()
    ]
    return markdown_table(["degradation", "picture", *measures], rows)


def differences_table(figures: Figures) -> str:
    """Returns the table of paired differences between restored and LQ pictures."""
    measures = figures.measures()
    rows = []
    for level in figures.levels():
        for kind in (kind for kind in figures.kinds() if kind not in (LQ, ROUND_TRIP)):
            cells = []
            for name in measures:
                change = figures.difference(level, kind, LQ, name)
                higher = figures.better(level, kind, LQ, name)
                cells.append(f"{interval_text(change, name, sign=True)}, {higher}")
            rows.append([level, kind, *cells])
    return markdown_table(["degradation", "picture", *measures], rows)


def sources_table(figures: Figures, sources: Sequence[str]) -> str:
    """Returns the table of paired differences per source of at least FEWEST pictures.

    Args:
        figures: of pictures numbered as `sources`.
        sources: where each picture comes from.
    """
    measures = figures.measures()
    rows = []
    for source in dict.fromkeys(sources):
        own = Figures()
        own.rows = [row for row in figures.rows if sources[row["picture"]] == source]
        count = sources.count(source)
        if count < FEWEST:
            continue
        for level in own.levels():
            for kind in (kind for kind in own.kinds() if kind not in (LQ, ROUND_TRIP)):
                changes = [
                    interval_text(own.difference(level, kind, LQ, name), name, sign=True)
                    for name in measures
                ]
                rows.append([source, str(count), level, kind, *changes])
    return markdown_table(["source", "pictures", "degradation", "picture", *measures], rows)


if __name__ == "__main__":
    main()
