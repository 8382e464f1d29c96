"""Several people in one picture, each with an adapter and a mask, against each of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.groups import degrade_people, group_photo
from pfstorer_core.measures.intervals import clustered_interval

from .face_measures import described
from .people import Person, derive_seed
from .tables import SIMILARITY, interval_text, markdown_table
from .tile_trial import FRAME, Trial

GROUPS = 8
TILE = 192  # pixels


def group(trial: Trial) -> str:
    """Compares people of a group photo with the same people restored alone."""
    rows, sheet = [], []
    for level in ("medium", "extreme"):
        own: dict[str, list[Tensor]] = {}
        leak: dict[str, list[Tensor]] = {}
        for number in range(GROUPS):
            people = [trial.people[(number + k) % len(trial.people)] for k in range(3)]
            pictures, parts = _group_restored(trial, people, level, number)
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
                sheet.append(torch.cat(list(pictures.values())))
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


def _group_restored(
    trial: Trial, people: Sequence[Person], level: str, number: int
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Returns a group photo restored as a whole, and each person's square of it in all ways."""
    photo = group_photo([int(p.name) for p in people], FRAME + 32, 3 * FRAME, number)
    generator = torch.Generator().manual_seed(number)
    lq = degrade_people(photo.picture, FRAME, PRESETS[level], generator)
    base = model = trial.bench.model
    for person, mask in zip(people, photo.masks, strict=True):
        model = trial.personalized(model, person, mask[None])
    pictures = {
        "LQ": lq,
        "base": trial.restore(base, lq, tile_size=TILE),
        "group": trial.restore(model, lq, tile_size=TILE),
        "truth": photo.picture,
    }
    parts = {
        kind: [_cut(picture, frame) for frame in photo.frames] for kind, picture in pictures.items()
    }
    parts["alone"] = [
        trial.restore(trial.personalized(base, person), part)
        for person, part in zip(people, parts["LQ"], strict=True)
    ]
    parts["only one adapter"] = []
    for person, mask, frame in zip(people, photo.masks, photo.frames, strict=True):
        single = trial.personalized(base, person, mask[None])
        restored = trial.restore(single, lq, tile_size=TILE)
        parts["only one adapter"].append(_cut(restored, frame))
    return pictures, parts


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


def _cut(picture: Tensor, frame: tuple[int, int, int]) -> Tensor:
    """Returns the square (1, 3, side, side) of a person, moved into the picture."""
    y, x, side = frame
    y = max(0, min(y, picture.shape[2] - side))
    x = max(0, min(x, picture.shape[3] - side))
    return picture[:, :, y : y + side, x : x + side].contiguous()


def _interval(groups: Sequence[Tensor]) -> str:
    return interval_text(clustered_interval(torch.stack(list(groups))))


def _save_rows(rows: Sequence[Tensor], path: Path) -> None:
    """Saves pictures (N, 3, H, W) of each row below each other, rows side by side."""
    columns = [torch.cat(list(row), dim=1) for row in rows]  # (3, N H, W) each
    to_pil_image(torch.cat(columns, dim=2).clamp(0, 1)).save(path)
