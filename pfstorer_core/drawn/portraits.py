"""Procedural portraits of parametric identities, for the demo, the tests and the mini restorer.

An identity is a number; it fixes what a person keeps (face shape, eyes, brows, nose, lips, hair,
skin, moles, freckles, glasses, beard). A view is what a photo adds (pose, expression, gaze, light,
background, framing).

Lengths of the head are in head units: 1 is half the head's height. The head's centre is at 0, x
goes to the picture's right, y down. Angles are in radians, colours RGB in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PFStorerError
from .painting import Values, draw

# More columns than are used: new values take the next ones, and the persons stay who they are.
_IDENTITY_DRAWS = 96
_VIEW_DRAWS = 48
_MOLES = 5  # at most
_TEXTURE_SEEDS = 65521  # a prime below 2^16: hashes of texture cells then stay within int64
SMALLEST = 16  # pixels of a portrait's side
_SKIN = (
    (0.97, 0.84, 0.75),
    (0.94, 0.77, 0.65),
    (0.88, 0.70, 0.55),
    (0.80, 0.60, 0.44),
    (0.68, 0.48, 0.34),
    (0.54, 0.37, 0.26),
    (0.40, 0.27, 0.19),
)
_HAIR = (
    (0.10, 0.08, 0.08),
    (0.24, 0.15, 0.10),
    (0.42, 0.26, 0.14),
    (0.58, 0.42, 0.22),
    (0.80, 0.66, 0.38),
    (0.60, 0.25, 0.10),
    (0.40, 0.11, 0.09),
    (0.66, 0.65, 0.64),
)
_IRIS = (
    (0.26, 0.50, 0.74),
    (0.42, 0.60, 0.70),
    (0.26, 0.52, 0.32),
    (0.50, 0.46, 0.20),
    (0.46, 0.28, 0.12),
    (0.24, 0.14, 0.08),
    (0.48, 0.50, 0.54),
)
_FRAME = (
    (0.08, 0.08, 0.09),
    (0.42, 0.24, 0.12),
    (0.66, 0.54, 0.26),
    (0.50, 0.10, 0.14),
    (0.12, 0.22, 0.46),
)
# Weights of the codes in painting.head, in their order.
_HAIR_STYLES = (0.13, 0.22, 0.18, 0.15, 0.2, 0.12)  # bald, short, parted, fringe, long, curly
_BEARDS = (0.58, 0.14, 0.10, 0.09, 0.09)  # none, stubble, full, goatee, moustache
_GLASSES = (0.68, 0.16, 0.16)  # none, round, square


class _Draws:
    """Hands out columns of a (B, N) table of uniform [0, 1) numbers in a fixed order.

    Every method returns one row per row of the table: (B,), or (B, 3) for colours.
    """

    def __init__(self, table: Tensor):
        self.table, self.next = table, 0

    def unit(self) -> Tensor:
        """Uniform in [0, 1)."""
        column = self.table[:, self.next]
        self.next += 1
        return column

    def between(self, low: float, high: float) -> Tensor:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> Tensor:
        """1 with this probability, else 0."""
        return (self.unit() < probability).float()

    def pick(self, weights: Sequence[float]) -> Tensor:
        """A number from 0 to len(weights) - 1, as often as its weight says."""
        bounds = torch.tensor(weights).cumsum(0) / sum(weights)
        return (self.unit()[:, None] >= bounds[:-1]).sum(1).float()

    def colour(self, table: Sequence[Sequence[float]]) -> Tensor:
        """A colour on the path through the table's colours, slightly varied in value."""
        colours = torch.tensor(table)
        place = self.unit() * (len(table) - 1)
        index = place.long().clamp(max=len(table) - 2)
        mix = (place - index)[:, None]  # (B, 1)
        value = self.between(0.92, 1.06)[:, None]
        return (colours[index] * (1 - mix) + colours[index + 1] * mix) * value

    def rgb(self, low: float, high: float) -> Tensor:
        """Three numbers in [low, high): (B, 3)."""
        return torch.stack([self.between(low, high) for _ in range(3)], 1)

    def listed(self, table: Sequence[Sequence[float]]) -> Tensor:
        """One of the table's colours."""
        return torch.tensor(table)[(self.unit() * len(table)).long().clamp(max=len(table) - 1)]


@dataclass(frozen=True)
class Identities:
    """What persons keep from photo to photo: named tensors of B rows, see `sample_identities`."""

    values: Values

    def __len__(self) -> int:
        return len(self.values["seed"])


@dataclass(frozen=True)
class Views:
    """What photos add: named tensors of B rows, see `sample_views`."""

    values: Values

    def __len__(self) -> int:
        return len(self.values["yaw"])


def sample_identities(numbers: Sequence[int]) -> Identities:
    """The persons of the given numbers; the same number is always the same person.

    Args:
        numbers: B non-negative integers, one per row; a number may occur several times.

    Raises:
        PFStorerError: a negative number.
    """
    if any(n < 0 for n in numbers):
        raise PFStorerError(f"Identity numbers must not be negative, got {min(numbers)}.")
    unique = {
        n: torch.rand(_IDENTITY_DRAWS, generator=torch.Generator().manual_seed(_scramble(n)))
        for n in set(numbers)
    }
    d = _Draws(torch.stack([unique[n] for n in numbers]))
    # Of the names below, *_x, *_y, *_w, *_h, *_r and *_t are places, (half) widths, heights, radii
    # and thicknesses in head units. The order of the draws is part of what a number means.
    v: Values = {"seed": torch.tensor([n % _TEXTURE_SEEDS for n in numbers], dtype=torch.int64)}
    v["skin"] = d.colour(_SKIN)
    v["blush"] = d.between(0.0, 0.5)
    v["width"] = d.between(0.68, 0.84)  # half width of the head
    v["jaw"] = d.between(0.10, 0.36)  # how much narrower the chin is
    v["chin"] = d.between(-0.06, 0.10)  # added to the half height
    v["age"] = d.unit() ** 2  # 0 smooth, 1 deep lines
    _draw_features(v, d)
    _draw_hair_and_marks(v, d)
    return Identities(v)


def _draw_features(v: Values, d: _Draws) -> None:
    """Draws eyes, brows, nose and mouth."""
    v["eye_x"] = d.between(0.27, 0.34)
    v["eye_y"] = d.between(-0.09, 0.01)
    v["eye_w"] = d.between(0.13, 0.175)
    v["eye_h"] = d.between(0.060, 0.105)
    v["eye_slant"] = d.between(-0.10, 0.24)  # rise per unit outwards
    v["lid"] = d.between(0.2, 1.0)  # strength of its crease
    v["iris"] = d.colour(_IRIS)
    v["iris_r"] = d.between(0.070, 0.092)
    v["lash"] = d.between(0.2, 1.0)  # strength
    v["brow_y"] = d.between(0.16, 0.24)  # above the eye
    v["brow_w"] = d.between(0.16, 0.21)
    v["brow_t"] = d.between(0.018, 0.052)
    v["brow_tilt"] = d.between(-0.16, 0.26)
    v["brow_bend"] = d.between(0.0, 0.09)
    v["nose_y"] = d.between(0.24, 0.34)
    v["nose_w"] = d.between(0.095, 0.17)
    v["nose_bridge"] = d.between(0.035, 0.065)
    v["nose_h"] = d.between(0.55, 1.2)  # strength of the relief
    v["mouth_y"] = d.between(0.54, 0.63)
    v["mouth_w"] = d.between(0.19, 0.30)
    v["lip_up"] = d.between(0.025, 0.065)  # height
    v["lip_low"] = d.between(0.035, 0.085)  # height
    v["lip_red"] = d.between(0.0, 1.0)
    v["cupid"] = d.between(0.1, 0.7)  # strength of the upper lip's bow


def _draw_hair_and_marks(v: Values, d: _Draws) -> None:
    """Draws hair, beard, glasses, ears, freckles, moles and dimples."""
    v["style"] = d.pick(_HAIR_STYLES)
    v["hair"] = d.colour(_HAIR)
    v["hairline"] = d.between(-0.66, -0.46)  # its y in front
    v["part"] = d.between(-0.45, 0.45)  # azimuth of the parting, radians
    v["volume"] = d.between(0.07, 0.16)  # thickness of the hair
    v["length"] = d.between(0.7, 1.35)  # y where long hair ends
    v["beard"] = d.pick(_BEARDS)
    v["glasses"] = d.pick(_GLASSES)
    v["frame"] = d.listed(_FRAME)
    v["frame_t"] = d.between(0.016, 0.030)
    v["frame_r"] = d.between(0.20, 0.245)
    v["freckles"] = d.chance(0.35) * d.between(0.25, 0.8)
    v["ear"] = d.between(0.8, 1.2)  # factor on the size
    mole_x, mole_y, mole_r = [], [], []
    for k in range(_MOLES):
        angle, radius = d.between(0, 2 * math.pi), d.between(0.16, 0.58)
        mole_x.append(radius * angle.cos() * 0.9)
        mole_y.append(0.22 + radius * angle.sin() * 0.95)
        mole_r.append(d.between(0.020, 0.040) * d.chance(0.75 - 0.11 * k))
    v["mole_x"], v["mole_y"], v["mole_r"] = (
        torch.stack(m, 1) for m in (mole_x, mole_y, mole_r)
    )  # (B, _MOLES) each; a radius of 0 is no mole
    v["mole_tone"] = d.between(0.15, 0.45)  # factor on the skin
    v["dimple"] = d.chance(0.25)


def sample_views(count: int, generator: torch.Generator) -> Views:
    """Random circumstances of `count` photos, drawn from the generator alone."""
    d = _Draws(torch.rand(count, _VIEW_DRAWS, generator=generator))
    v: Values = {}
    v["yaw"] = d.between(-0.52, 0.52)  # radians, as pitch and roll
    v["pitch"] = d.between(-0.22, 0.24)
    v["roll"] = d.between(-0.20, 0.20)
    v["scale"] = d.between(0.60, 0.82)  # half the head's height as a share of half the picture
    v["x"] = d.between(-0.14, 0.14)  # the head's centre, the picture's edges being at -1 and 1
    v["y"] = d.between(-0.08, 0.12)
    v["gaze_x"] = d.between(-0.035, 0.035)  # shift of the iris, head units
    v["gaze_y"] = d.between(-0.015, 0.015)
    v["open"] = d.between(0.75, 1.1)  # factor on the eyes' height
    v["smile"] = d.between(-0.25, 1.0)
    v["mouth_open"] = (d.unit() * 1.6 - 0.8).clamp(min=0)  # closed in half of the photos
    v["brow_raise"] = d.between(-0.02, 0.035)  # head units
    v["light_x"] = d.between(-0.9, 0.9)
    v["light_y"] = d.between(-0.8, 0.15)
    v["ambient"] = d.between(0.42, 0.72)  # brightness in the shade
    v["warm"] = d.between(-0.07, 0.07)  # added to the factor on red, taken from that on blue
    v["exposure"] = d.between(0.78, 1.12)
    grey = d.between(0.2, 0.85)[:, None]  # (B, 1)
    v["back_a"] = (grey + d.rgb(-0.16, 0.16)).clamp(0.05, 0.95)
    v["back_b"] = (v["back_a"] + d.rgb(-0.2, 0.2)).clamp(0.05, 0.95)
    v["back_angle"] = d.between(0, 2 * math.pi)
    v["back_wave"] = d.between(0.0, 0.07)
    v["back_freq"] = d.between(2.0, 7.0)  # radians per half picture
    v["cloth"] = d.rgb(0.1, 0.85)
    v["collar"] = d.chance(0.5)
    return Views(v)


def render(identities: Identities, views: Views, size: int = 128) -> Tensor:
    """Draws one picture per row.

    Args:
        identities: B persons.
        views: B views.
        size: height and width of the pictures in pixels, at least 16.

    Returns:
        (B, 3, size, size) float32 in [0, 1].

    Raises:
        PFStorerError: unequal numbers of persons and views, or size below 16.
    """
    if len(identities) != len(views):
        raise PFStorerError(
            f"{len(identities)} identities but {len(views)} views: give one view per identity."
        )
    if size < SMALLEST:
        raise PFStorerError(f"A portrait needs at least {SMALLEST} pixels, got {size}.")
    # picture by picture: the many small tensors then stay in the cache
    return torch.cat(
        [draw(row(identities.values, k), row(views.values, k), size) for k in range(len(views))]
    )


def portrait_set(identity: int, count: int, seed: int, size: int = 128) -> Tensor:
    """Photos of one person under different views.

    Args:
        identity: the person's number.
        count: how many photos.
        seed: of the views.
        size: height and width in pixels, at least 16.

    Returns:
        (count, 3, size, size) float32 in [0, 1].

    Raises:
        PFStorerError: a negative identity, no view, or size below 16.
    """
    if count < 1:
        raise PFStorerError(f"At least one view is needed, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    return render(sample_identities([identity] * count), sample_views(count, generator), size)


def _scramble(number: int) -> int:
    """A well mixed 32-bit seed (SplitMix64), for neighbouring seeds have related first draws."""
    z = (number * 0x9E3779B97F4A7C15 + 0x1234567) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & 0xFFFFFFFF


def row(values: Values, k: int) -> Values:
    """Returns one row of named tensors, as tensors of one row."""
    return {name: tensor[k : k + 1] for name, tensor in values.items()}
