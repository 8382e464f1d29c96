"""Restored pictures measured against the truth and against photos of the person."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import PFStorerError
from ..pictures.resizing import resize_bicubic
from ..pictures.values import unit_range
from . import metrics
from .face_crops import aligned_face
from .figures import (
    BASE,
    LPIPS,
    LQ,
    MEASURES,
    PERSONALIZED,
    RESTORED,
    SIMILARITY,
    TRUTH,
    Comparison,
)
from .photo_checks import COPY, copy_correlations
from .similarity import IdentityEmbedding

FacePoints = Callable[
    [Tensor], list[Tensor]
]  # photo (3, H, W) to points (5, 2), largest face first
Progress = Callable[[int, int], None]  # how many of how many steps are done

_OTHER_SHAPE = 0.05  # relative difference of proportions from which a picture looks distorted


def compare(
    restored: Sequence[Tensor],
    *,
    truth: Sequence[Tensor] = (),
    references: Sequence[Tensor] = (),
    lq: Sequence[Tensor] = (),
    base: Sequence[Tensor] = (),
    embedding: IdentityEmbedding | None = None,
    find_faces: FacePoints | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measures restored pictures, and beside them those that they were or might have been.

    The truth decides the size, without it the restored picture; the others are scaled to it.
    Similarity is the mean cosine to the references (`similarity.identity_similarity`).

    Args:
        restored: B pictures (3, H, W) in [0, 1], of any sizes; values a little outside are clamped.
        truth, lq, base: B pictures each, one for all of them, or none.
        references: photos of the person, of any sizes.
        embedding: what identities are compared with; None leaves the similarity out.
        find_faces: for an embedding that wants aligned face crops. The face is looked for in the
            truth, else in the restored picture, the base's and the LQ picture, and cut out at one
            place in all pictures of an item. None embeds whole pictures.
        progress: called after each picture that was measured, embedded or looked at for a face,
            with the number done and the number there are at most; what it raises ends the
            comparison.

    Raises:
        PFStorerError: there is nothing to compare with, counts that do not fit, or a picture with
            values that are no picture's.
    """
    if not truth and not references:
        raise PFStorerError(
            "Neither truth nor references are connected, so there is nothing to compare with; "
            "connect the original picture, or photos of the person."
        )
    main = PERSONALIZED if base else RESTORED
    given = {LQ: lq, BASE: base, main: restored, TRUTH: truth}
    notes: list[str] = []
    columns = _columns(given, main, notes)
    photos = [_picture("references", k, photo) for k, photo in enumerate(references)]
    measured = _Measured(columns, main, photos, notes, progress)
    identities = bool(photos) and embedding is not None
    measured.expect(bool(truth), identities, find_faces is not None)
    baseline = math.nan
    if truth:
        measured.measure_quality()
    if photos and embedding is not None:
        baseline = measured.measure_identity(embedding, find_faces)
        if truth:
            notes += _copy_notes(columns[TRUTH], photos)
    elif embedding is not None:
        notes.append("There are no references, so the identity similarity is left out.")
    return Comparison(columns, main, measured.figures, baseline, photos, notes)


class _Measured:
    """A comparison while its figures are measured.

    Args:
        columns: by kind, one picture per item.
        main: the kind of the restored pictures.
        photos: of the person.
        notes: to be added to.
        progress: see `compare`.
    """

    def __init__(
        self,
        columns: dict[str, list[Tensor]],
        main: str,
        photos: list[Tensor],
        notes: list[str],
        progress: Progress | None,
    ) -> None:
        self.columns, self.main, self.photos, self.notes = columns, main, photos, notes
        self.figures: dict[str, dict[str, Tensor]] = {kind: {} for kind in columns}
        self._progress = progress
        self._done = self._total = 0

    def expect(self, quality: bool, identities: bool, faces: bool) -> None:
        """Counts the steps of what is going to be measured."""
        count = len(self.columns[self.main])
        self._total = count * (len(self.columns) - 1) if quality else 0
        if identities:
            self._total += len(self.photos) + count * len(self.columns)
            self._total += len(self.photos) + count if faces else 0

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def measure_quality(self) -> None:
        """Adds the measures against the truth to the figures."""
        measures = dict(MEASURES)
        if not metrics.lpips_available():
            del measures[LPIPS]
            self.notes.append(
                f"LPIPS is left out: {metrics.LPIPS_WEIGHTS} does not lie in torch hub's folder of "
                "checkpoints."
            )
        truth = self.columns[TRUTH]
        small = min(min(picture.shape[-2:]) for picture in truth)
        for name, (_, smallest) in measures.items():
            if small < smallest:
                self.notes.append(f"{name} needs pictures of at least {smallest} px a side.")
        for kind, pictures in self.columns.items():
            if kind == TRUTH:
                continue
            values = {name: torch.full((len(pictures),), math.nan) for name in measures}  # (B,)
            for k, (picture, clean) in enumerate(zip(pictures, truth, strict=True)):
                for name, (measure, smallest) in measures.items():
                    if min(clean.shape[-2:]) >= smallest:
                        values[name][k] = float(measure(picture[None], clean[None]))
                self._step()
            self.figures[kind] = values

    def measure_identity(
        self, embedding: IdentityEmbedding, find_faces: FacePoints | None
    ) -> float:
        """Adds the similarity to the figures and returns the baseline."""
        places: list[Tensor | None] = [None] * len(self.columns[self.main])
        items = list(range(len(places)))
        photos = self.photos
        if find_faces is not None:
            photos = self._faces_of_photos(find_faces)
            if not photos:
                self.notes.append(
                    "No reference shows a face, so the identity similarity is left out."
                )
                return math.nan
            places = self._faces_of_items(find_faces)
            items = [k for k in items if places[k] is not None]
        embedded = []
        for photo in photos:
            embedded.append(embedding.embed(photo[None]))
            self._step()
        known = torch.cat(embedded)  # (R, D)
        for kind, pictures in self.columns.items():
            values = torch.full((len(pictures),), math.nan)
            for k in items:
                points = places[k]
                picture = pictures[k] if points is None else aligned_face(pictures[k], points)
                values[k] = (embedding.embed(picture[None]) @ known.T).mean()
                self._step()
            self.figures[kind][SIMILARITY] = values  # (B,)
        if len(known) < 2:
            self.notes.append(
                "One reference has no baseline; give two or more, to know what is high."
            )
            return math.nan
        alike = known @ known.T  # (R, R)
        others = ~torch.eye(len(known), dtype=torch.bool)
        return float(alike[others].mean())

    def _faces_of_photos(self, find_faces: FacePoints) -> list[Tensor]:
        """Returns the faces cut out of the references that show one."""
        faces = []
        for k, photo in enumerate(self.photos):
            points = _face(find_faces, [photo], f"Reference {k + 1}", self.notes)
            if points is not None:
                faces.append(aligned_face(photo, points))
            self._step()
        return faces

    def _faces_of_items(self, find_faces: FacePoints) -> list[Tensor | None]:
        """Returns where the face of each item is, None where no picture of it shows one."""
        kinds = [kind for kind in (TRUTH, self.main, BASE, LQ) if kind in self.columns]
        places = []
        for k in range(len(self.columns[self.main])):
            pictures = [self.columns[kind][k] for kind in kinds]
            places.append(_face(find_faces, pictures, f"Picture {k + 1}", self.notes))
            self._step()
        return places


def _columns(
    given: dict[str, Sequence[Tensor]], main: str, notes: list[str]
) -> dict[str, list[Tensor]]:
    """Returns one picture per item of each kind that is given, each item's of one size."""
    count = len(given[main])
    if count == 0:
        raise PFStorerError("No restored picture is connected; connect the output to be measured.")
    columns = {}
    for kind, pictures in given.items():
        if not pictures:
            continue
        if len(pictures) not in (1, count):
            wanted = "1" if count == 1 else f"1 or {count}"
            raise PFStorerError(
                f"There are {len(pictures)} pictures of '{kind}' but {count} restored; give "
                f"{wanted}, in the same order."
            )
        checked = [_picture(kind, k, picture) for k, picture in enumerate(pictures)]
        columns[kind] = checked if len(checked) == count else checked * count
    sizes = [picture.shape[-2:] for picture in columns[TRUTH if TRUTH in columns else main]]
    for kind, pictures in columns.items():
        notes += _size_notes(kind, pictures, sizes)
        columns[kind] = [
            resize_bicubic(picture[None], (size[0], size[1]))[0]
            for picture, size in zip(pictures, sizes, strict=True)
        ]
    return columns


def _picture(kind: str, k: int, picture: Tensor) -> Tensor:
    if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise PFStorerError(
            f"Picture {k + 1} of '{kind}' has the shape {tuple(picture.shape)}; give (3, H, W)."
        )
    picture = picture.detach().to("cpu", torch.float32)
    return unit_range(picture, f"Picture {k + 1} of '{kind}'")


def _size_notes(kind: str, pictures: Sequence[Tensor], sizes: Sequence[torch.Size]) -> list[str]:
    scaled = [
        (picture.shape[-2:], size)
        for picture, size in zip(pictures, sizes, strict=True)
        if picture.shape[-2:] != size
    ]
    if not scaled:
        return []
    (height, width), (to_height, to_width) = scaled[0]
    notes = [
        f"{kind}: scaled from {width} x {height} to {to_width} x {to_height} px"
        + (f", and {len(scaled) - 1} more." if len(scaled) > 1 else ".")
    ]
    if any(
        # sides of a few pixels are rounded
        abs(math.log(h * w2 / (w * h2))) > _OTHER_SHAPE + 1 / min(h, w, h2, w2)
        for (h, w), (h2, w2) in scaled
    ):
        notes.append(
            f"{kind}: its proportions are not those of the picture that it is compared with, so "
            "its figures mean little; crop both alike."
        )
    return notes


def _copy_notes(truth: list[Tensor], references: list[Tensor]) -> list[str]:
    found = copy_correlations([*truth, *references])[len(truth) :, : len(truth)].amax(1)
    return [
        f"Reference {k} is nearly the same picture as the truth, which makes the similarity look "
        "higher; leave it out."
        for k, value in enumerate(found.tolist(), 1)
        if value >= COPY
    ]


def _face(
    find_faces: FacePoints, pictures: Sequence[Tensor], name: str, notes: list[str]
) -> Tensor | None:
    """Returns the points of the largest face of the first picture that shows one."""
    for picture in pictures:
        faces = find_faces(picture)
        if len(faces) > 1:
            notes.append(f"{name}: there are {len(faces)} faces; the largest is compared.")
        if faces:
            return faces[0]
    notes.append(f"{name}: no face was found; it is left out of the identity similarity.")
    return None
