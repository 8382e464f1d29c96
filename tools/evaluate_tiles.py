"""Measures tiled restoration: seams, several people, large scales, few steps.

    python tools/evaluate_tiles.py                            # all, on drawn people
    python tools/evaluate_tiles.py --sections seams group     # some
    python tools/evaluate_tiles.py --people FOLDER --recognition MobileFaceNet.tflite

Runs in ComfyUI's environment (scripts/setup_host.py makes one), by default with the mini restorer.
Beside --sections it takes all options of tools/evaluate.py; people, adapters and their cache are
the same, so with the same options no adapter is trained twice. Of photos of real people it measures
those that lie side by side, and few steps. Writes Markdown tables and pictures to OUT. Intervals
are 95% bootstraps that resample people or groups.
"""

from __future__ import annotations

import argparse
import io
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import repository  # noqa: F401
import torch
from evaluate import FULL, Bench, Judge, gather_people, parse_options
from evaluation.adapters import VARIANTS
from evaluation.face_measures import described
from evaluation.people import Person, derive_seed
from evaluation.recognition import load_recognition
from evaluation.tables import LEVELS, SIMILARITY, contact_sheet, interval_text, markdown_table
from in_process import use_comfyui
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.groups import degrade_people, group_photo
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.measures.intervals import clustered_interval
from pfstorer_core.measures.metrics import haarpsi, psnr
from pfstorer_core.measures.similarity import IdentityEmbedding, identity_similarity, load_embedding
from pfstorer_core.pictures.resizing import resize_bicubic
from pfstorer_core.tiling.grid import tile_grid

TRAINED = 128  # pixels: side of the mini restorer's pictures
FRAME = 160  # pixels: side of the square that a person of a group takes
GROUPS = 8
CROWD = 512, 960  # height and width of a group photo of six people
CROWDS = 16
JPEG_QUALITY = 80
TILE = 192  # pixels
CROWD_TILE = 176  # pixels
NEAR = 4, 8  # pixels from a border: what is there is alike, also in its place in latent pixels


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line: the options of tools/evaluate.py, and the sections."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All other options are those of tools/evaluate.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=[])
    chosen, others = parser.parse_known_args(arguments)
    options = parse_options(others)
    possible = PHOTOGRAPHED if options.people else DRAWN
    if wrong := [name for name in chosen.sections if name not in possible]:
        parser.error(
            f"{wrong[0]} is measured on {'drawn people' if options.people else '--people FOLDER'}"
        )
    options.sections = chosen.sections or list(possible)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen sections; writes each report to OUT as tiles_SECTION.md and prints it."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use_comfyui()
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    try:
        trial = Trial(options)
    except PFStorerError as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.sections:
        report = SECTIONS[name](trial)
        (options.out / f"tiles_{name}.md").write_text(report, encoding="utf-8")
        print(report, flush=True)


class Trial:
    """The restorer, people with their adapters, and who judges their pictures.

    Args:
        options: of `parse`.

    Raises:
        PFStorerError: a file, a photo or a face is missing.
    """

    def __init__(self, options: argparse.Namespace):
        self.out: Path = options.out
        self.steps: int = options.steps
        self.bench = Bench(options)
        self.people = gather_people(options, {FULL: VARIANTS[FULL]})
        self.networks = [load_recognition(name) for name in options.recognition or [None]]
        judge = Judge(self.networks)
        self.measures = [judge.measures(person) for person in self.people]
        self.embedding: IdentityEmbedding = load_embedding()

    def adapter(self, person: Person) -> IdentityAdapter:
        """Returns a person's adapter, trained now if it is not there."""
        return self.bench.adapter(person, VARIANTS[FULL])

    def personalized(self, model: Any, person: Person, mask: Tensor | None = None) -> Any:
        """Returns a MODEL that restores a person as well."""
        from pfstorer_core.host import apply_identity

        return apply_identity(model, self.adapter(person), mask=mask)

    def restore(self, model: Any, lq: Tensor, **settings: Any) -> Tensor:
        """Restores pictures (B, 3, H, W) in [0, 1]."""
        from pfstorer_core.host import restore

        settings = {"steps": self.steps, "color_fix": "none", **settings}
        return restore(model, self.bench.vae, lq.movedim(1, -1), **settings).movedim(-1, 1)

    def similarity(self, picture: Tensor, person: Person) -> float:
        """Returns the mean similarity of pictures (B, 3, H, W) to a drawn person's references."""
        small = resize_bicubic(picture.contiguous(), (TRAINED, TRAINED))
        return float(identity_similarity(self.embedding, small, person.references).mean())


def seams(trial: Trial) -> str:
    """Compares gradients across tile borders with those elsewhere."""
    overlaps = (0.0, 0.25)
    profiles: dict[float, list[Tensor]] = {overlap: [] for overlap in overlaps}
    quality: dict[str, list[float]] = {}
    height, width = CROWD
    for number in range(CROWDS):
        first = 2_000_000 + 6 * number
        truth = group_photo(range(first, first + 6), height, width, number).picture
        generator = torch.Generator().manual_seed(number)
        lq = degrade_people(truth, FRAME, PRESETS["medium"], generator)
        settings = {"upscaling": "one pass", "steps": 4}
        whole = trial.restore(trial.bench.model, lq, tile_size=width, **settings)
        pictures = {"LQ": lq, "one piece": whole}
        for overlap in overlaps:
            restored = trial.restore(
                trial.bench.model, lq, tile_size=CROWD_TILE, overlap=overlap, **settings
            )
            profiles[overlap].append(_border_gradients(restored, whole, truth, overlap))
            pictures[f"tiles, overlap {overlap:.0%}"] = restored
        for name, picture in pictures.items():
            quality.setdefault(name, []).append(float(psnr(picture, truth)))
    rows = []
    for name, values in quality.items():
        rows.append([name, "", "", "", f"{statistics.fmean(values):.2f}"])
    for row, overlap in zip(rows[2:], overlaps, strict=True):
        gradients = torch.cat(profiles[overlap])[:, None]  # (borders, 1, 6)
        for column, (over, under) in enumerate(((0, 2), (1, 2), (0, 1)), 1):
            # measures: across the border and beside it, in each of the two pictures
            four = gradients[..., (2 * over, 2 * over + 1, 2 * under, 2 * under + 1)]
            ratio = clustered_interval(
                four, lambda m: (m[..., 0] / m[..., 1]) / (m[..., 2] / m[..., 3])
            )
            row[column] = interval_text(ratio)
    header = ["", "tiles / truth", "one piece / truth", "tiles / one piece", "PSNR"]
    return (
        f"{CROWDS} group photos of six people, {width} x {height} px, medium degradation, tiles of "
        f"{CROWD_TILE} px. Mean gradient across the borders of tiles as a multiple of that "
        f"{NEAR[0]} and {NEAR[1]} px beside them, in the picture restored in tiles, in the one "
        "restored in one piece (at the same places), and in the truth; 1 is seamless.\n\n"
        f"{markdown_table(header, rows)}\n"
    )


def _border_gradients(restored: Tensor, whole: Tensor, truth: Tensor, overlap: float) -> Tensor:
    """Returns the mean gradients across each border and beside it.

    Returns:
        (borders, 6): restored in tiles, restored in one piece, truth; each across and beside.
    """
    found = []
    for dim in (2, 3):
        profiles = [
            x.mean(1, keepdim=True).diff(dim=dim).abs().mean([d for d in range(4) if d != dim])
            for x in (restored, whole, truth)
        ]  # (length - 1,) each
        for line in _border_lines(truth.shape[dim], CROWD_TILE, int(CROWD_TILE * overlap)):
            beside = [line - 1 + side * far for side in (-1, 1) for far in NEAR]
            beside = [place for place in beside if 0 <= place < len(profiles[0])]
            found += [x for p in profiles for x in (p[line - 1], p[beside].mean())]
    return torch.stack(found).reshape(-1, 6)


def _border_lines(length: int, tile: int, overlap: int) -> list[int]:
    """Returns the places along an axis at which a tile begins or ends."""
    tiles = tile_grid(length, 1, tile, overlap)
    return sorted(({t.y0 for t in tiles} | {t.y1 for t in tiles}) - {0, length})


def group(trial: Trial) -> str:
    """Compares people of a group photo with the same people restored alone."""
    rows, sheet = [], []
    for level in ("medium", "extreme"):
        own: dict[str, list[Tensor]] = {}
        leak: dict[str, list[Tensor]] = {}
        for number in range(GROUPS):
            people = [trial.people[(number + k) % len(trial.people)] for k in range(3)]
            photo = group_photo([int(p.name) for p in people], FRAME + 32, 3 * FRAME, number)
            generator = torch.Generator().manual_seed(number)
            lq = degrade_people(photo.picture, FRAME, PRESETS[level], generator)
            model = trial.bench.model
            for person, mask in zip(people, photo.masks, strict=True):
                model = trial.personalized(model, person, mask[None])
            pictures = {
                "LQ": lq,
                "base": trial.restore(trial.bench.model, lq, tile_size=TILE),
                "group": trial.restore(model, lq, tile_size=TILE),
                "truth": photo.picture,
            }
            parts = {
                kind: [_cut(picture, frame) for frame in photo.frames]
                for kind, picture in pictures.items()
            }
            parts["alone"] = [
                trial.restore(trial.personalized(trial.bench.model, person), part)
                for person, part in zip(people, parts["LQ"], strict=True)
            ]
            parts["only one adapter"] = []
            for person, mask, frame in zip(people, photo.masks, photo.frames, strict=True):
                single = trial.personalized(trial.bench.model, person, mask[None])
                restored = trial.restore(single, lq, tile_size=TILE)
                parts["only one adapter"].append(_cut(restored, frame))
            for kind, cuts in parts.items():
                values = [trial.similarity(x, p) for x, p in zip(cuts, people, strict=True)]
                own.setdefault(kind, []).append(torch.tensor(values))
                others = [
                    trial.similarity(x, p)
                    for x, who in zip(cuts, people, strict=True)
                    for p in people
                    if p is not who
                ]
                leak.setdefault(kind, []).append(torch.tensor(others))
            if number < 2:
                sheet.append(torch.cat([pictures[k] for k in ("LQ", "base", "group", "truth")]))
        for kind in ("LQ", "base", "alone", "only one adapter", "group", "truth"):
            rows.append([level, kind, _interval(own[kind]), _interval(leak[kind])])
        for other in ("alone", "only one adapter", "base"):
            apart, leaked = (
                [a - b for a, b in zip(values["group"], values[other], strict=True)]
                for values in (own, leak)
            )
            rows.append([level, f"group - {other}", _interval(apart), _interval(leaked)])
    _save_rows(sheet, trial.out / "tiles_group.png")
    table = markdown_table(["level", "", "similarity to the person", "to the others"], rows)
    return (
        f"{GROUPS} group photos of three people, {3 * FRAME} x {FRAME + 32} px, tiles of {TILE} "
        f"px, one adapter and mask for each person. Alone: the person's square cut out and "
        f"restored with the one adapter. Only one adapter: the whole picture with the adapters and "
        f"masks of the others left out.\n\n{table}\n"
    )


def people(trial: Trial) -> str:
    """Compares photos of three people side by side with the same photos restored alone."""
    rows, sheet = [], []
    size = trial.people[0].clean.shape[-1]
    places = [slice(k * size, (k + 1) * size) for k in range(3)]
    base = trial.bench.model
    trios = [range(k, k + 3) for k in range(0, len(trial.people) - 2, 3)]
    for level in ("medium", "extreme"):
        found: dict[str, list[Tensor]] = {}  # (M,) of each person
        for trio in trios:
            three = [trial.people[k] for k in trio]
            masks = [torch.zeros(1, size, 3 * size) for _ in three]
            for mask, place in zip(masks, places, strict=True):
                mask[..., place] = 1
            lq = []
            for person in three:
                generator = torch.Generator().manual_seed(derive_seed(level, person.name))
                lq.append(degrade(person.clean, PRESETS[level], generator))  # (M, 3, S, S)
            models = {"base": base, "group": base}
            for person, mask in zip(three, masks, strict=True):
                models["group"] = trial.personalized(models["group"], person, mask)
            strips = {"LQ": torch.cat(lq, 3)}  # (M, 3, S, 3 S)
            for kind, model in models.items():
                strips[kind] = trial.restore(model, strips["LQ"])
            strips["clean"] = torch.cat([person.clean for person in three], 3)
            sheet.append(torch.cat([strip[:1] for strip in strips.values()]))
            for k, person, mask, place in zip(trio, three, masks, places, strict=True):
                others = base
                for other, of_other in zip(three, masks, strict=True):
                    if of_other is not mask:
                        others = trial.personalized(others, other, of_other)
                parts = {kind: strip[..., place] for kind, strip in strips.items()}
                parts["others' adapters"] = trial.restore(others, strips["LQ"])[..., place]
                parts["alone"] = trial.restore(trial.personalized(base, person), lq[k - trio[0]])
                for kind, part in parts.items():
                    value = trial.measures[k](part.contiguous())[SIMILARITY]
                    found.setdefault(kind, []).append(value)
        for kind in ("LQ", "base", "others' adapters", "alone", "group", "clean"):
            rows.append([level, kind, _interval(found[kind])])
        for kind, other in (
            ("group", "base"),
            ("group", "alone"),
            ("others' adapters", "base"),
        ):
            apart = [a - b for a, b in zip(found[kind], found[other], strict=True)]
            rows.append([level, f"{kind} - {other}", _interval(apart)])
    _save_rows(sheet, trial.out / "tiles_people.png")
    count = len(trial.people[0].clean)
    return (
        f"{len(trios) * count} pictures of {3 * size} x {size} px, photos of three people side by "
        "side, one adapter for each and a mask of his third; similarity to the person by "
        f"{described(trial.networks)}. Alone: the one photo with the one adapter. Others' "
        "adapters: those of the two beside him only.\n\n"
        f"{markdown_table(['level', '', SIMILARITY], rows)}\n"
    )


def upscaling(trial: Trial) -> str:
    """Scales portraits of 26 px up twenty times, in all ways."""
    side, small = 520, 26
    rows, sheets = [], []
    kinds: dict[str, list[list[float]]] = {}
    for person in trial.people:
        seed = derive_seed("upscaling", person.name)
        clean = portrait_set(int(person.name), 1, seed, side)
        lq = _jpeg(resize_bicubic(clean, (small, small)))
        model = trial.personalized(trial.bench.model, person)
        pictures = {"LQ, scaled": resize_bicubic(lq, (side, side))}
        for name, base, way in (
            ("base, auto", trial.bench.model, "auto"),
            ("personalized, one pass", model, "one pass"),
            ("personalized, progressive", model, "progressive"),
            ("personalized, auto", model, "auto"),
        ):
            started = time.perf_counter()
            pictures[name] = trial.restore(base, lq, size=(side, side), upscaling=way)
            kinds.setdefault(f"{name} s", []).append([time.perf_counter() - started])
        pictures["truth"] = clean
        for name, picture in pictures.items():
            values = [trial.similarity(picture, person)]
            if name != "truth":
                values += [float(psnr(picture, clean)), float(haarpsi(picture, clean))]
            kinds.setdefault(name, []).append(values)
        sheets.append(torch.cat(list(pictures.values())))
    for name, values in kinds.items():
        if not name.endswith(" s"):
            means = [statistics.fmean(column) for column in zip(*values, strict=True)]
            seconds = [x for (x,) in kinds.get(f"{name} s", [])]
            cells = [f"{means[0]:.3f}", *(f"{x:.2f}" for x in means[1:])]
            cells += [""] * (3 - len(cells))
            rows.append([name, *cells, f"{statistics.fmean(seconds):.1f}" if seconds else ""])
    labels = [p.name for p in trial.people[:3]]
    shown = [
        (name, torch.cat([sheet[k : k + 1] for sheet in sheets[:3]]))
        for k, name in enumerate(pictures)
    ]
    contact_sheet(shown, labels, cell=260).save(trial.out / "tiles_upscaling.png")
    table = markdown_table(["", SIMILARITY, "PSNR", "HaarPSI", "seconds"], rows)
    return f"Portraits of {small} px scaled up to {side} px ({side / small:.0f} x).\n\n{table}\n"


def fast(trial: Trial) -> str:
    """Measures quality against steps and the encoder's interval."""
    rows = []
    for steps, interval in ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4), (20, 1), (20, 4)):
        cells, seconds = [f"{steps}", f"{interval}"], 0.0
        for level in LEVELS:
            similar, quality = [], []
            for person, measures in zip(trial.people, trial.measures, strict=True):
                generator = torch.Generator().manual_seed(derive_seed(level, person.name))
                lq = degrade(person.clean, PRESETS[level], generator)
                model = trial.personalized(trial.bench.model, person)
                started = time.perf_counter()
                out = trial.restore(model, lq, steps=steps, encoder_interval=interval)
                seconds += time.perf_counter() - started
                similar.append(float(measures(out)[SIMILARITY].mean()))
                quality.append(float(psnr(out, person.clean).mean()))
            cells.append(f"{statistics.fmean(similar):.3f} / {statistics.fmean(quality):.2f}")
        pictures = sum(len(person.clean) for person in trial.people) * len(LEVELS)
        rows.append([*cells, f"{1000 * seconds / pictures:.0f}"])
    table = markdown_table(["steps", "encoder interval", *LEVELS, "ms a picture"], rows)
    return (
        f"{len(trial.people)} people, personalized, {SIMILARITY} (by "
        f"{described(trial.networks)}) / PSNR, euler.\n\n{table}\n"
    )


SECTIONS: dict[str, Callable[[Trial], str]] = {
    "seams": seams,
    "group": group,
    "people": people,
    "upscaling": upscaling,
    "fast": fast,
}
DRAWN = ("seams", "group", "upscaling", "fast")
PHOTOGRAPHED = ("people", "fast")


def _cut(picture: Tensor, frame: tuple[int, int, int]) -> Tensor:
    """Returns the square (1, 3, side, side) of a person, moved into the picture."""
    y, x, side = frame
    y = max(0, min(y, picture.shape[2] - side))
    x = max(0, min(x, picture.shape[3] - side))
    return picture[:, :, y : y + side, x : x + side].contiguous()


def _interval(groups: Sequence[Tensor]) -> str:
    return interval_text(clustered_interval(torch.stack(list(groups))))


def _jpeg(images: Tensor) -> Tensor:
    saved = []
    for image in images:
        buffer = io.BytesIO()
        to_pil_image(image.clamp(0, 1)).save(buffer, "JPEG", quality=JPEG_QUALITY)
        saved.append(pil_to_tensor(Image.open(buffer)).float() / 255)
    return torch.stack(saved)


def _save_rows(rows: Sequence[Tensor], path: Path) -> None:
    """Saves pictures (N, 3, H, W) of each row below each other, rows side by side."""
    columns = [torch.cat(list(row), dim=1) for row in rows]  # (3, N H, W) each
    to_pil_image(torch.cat(columns, dim=2).clamp(0, 1)).save(path)


if __name__ == "__main__":
    main()
