"""Checks of the photos of a person before a training: errors at once, the rest as warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PFStorerError
from ..pictures.values import unit_range
from ..pictures.views import ViewConfig

FEWEST, BEST, MOST = 3, "3 to 10 photos are best", 20
FLAT = 2.0 / 255.0  # range of the values below which a photo shows nothing
# Measured on 257 real photos of 146 px and more at 128 px, and on 900 procedural portraits: none is
# above; blurred by 1 px 0 to 29% are, by 1.5 px 92% or more, by 2 px all. At 512 px 2 of 40 real
# photos of 640 px are above.
MOST_BLUR = 1.6  # px
REBLUR = 1.0  # px
STRONGEST = 0.01  # share of the pixels that count as edges
# Measured on 690 pairs of portraits of one person: at most 0.926; on 931 pairs of real photos of
# one person, many taken within seconds: 3 are above. Copies (JPEG 30, half the size, 0.6 to 1.4
# times as bright, cropped by up to 15%) reach at least 0.944.
COPY = 0.94  # correlation
COPY_SIDE = 64  # px, root of the area at which photos are compared
COPY_CENTRE = 44  # px, side of the centre that is looked for in the other photo
COPY_SCALES = range(34, COPY_CENTRE + 1)  # px, that centre's side in a photo of a wider crop
COPY_BAND = (0.7, 4.0)  # px, Gaussian sigmas: fine enough to tell poses, coarse enough to align


def check_photos(
    photos: Sequence[Tensor],
    size: int,
    *,
    find_faces: Callable[[Tensor], int] | None = None,
    views: ViewConfig | None = None,
) -> list[str]:
    """Refuse photos that cannot be trained on and say what is wrong with the others.

    Photos are numbered from 1.

    Args:
        photos: (3, H, W) in [0, 1] each, of any sizes.
        size: side of the views drawn from them, px.
        find_faces: returns how many faces a photo (3, H, W) shows; None leaves that check out.
        views: how views are drawn, for the smallest size of a photo.

    Returns:
        Warnings, one sentence each: too few or many photos, blur, near-duplicates, no face or
        several.

    Raises:
        PFStorerError: no photo, or one of the wrong shape, too small, with values far outside
            [0, 1], or of one colour.
    """
    if not photos:
        raise PFStorerError(f"There is no photo to train on; give some of the person ({BEST}).")
    smallest = math.ceil((views or ViewConfig()).min_photo * size)
    pictures = [
        _checked(photo, number, size, smallest).float().cpu()
        for number, photo in enumerate(photos, 1)
    ]
    return [
        *_count_warnings(len(pictures)),
        *_blur_warnings(pictures, size),
        *_copy_warnings(pictures),
        *(_face_warnings(pictures, find_faces) if find_faces else []),
    ]


def blur_width(photo: Tensor, size: int) -> float:
    """Return how blurred a photo's strongest edges are: the sigma of a Gaussian in view px.

    An edge blurred by sigma loses the share sqrt(sigma^2 / (sigma^2 + s^2)) of its steepness when
    it is blurred once more by s. The medians over the strongest edges along x and along y are
    taken apart and the larger counts, so that motion in one direction shows.

    Args:
        photo: (3, H, W) in [0, 1]; a photo larger than a view is first scaled down to one.
        size: side of a view, px.

    Returns:
        About 0.5 to 1.2 for a sharp photo, at most 100. It tells blurs of several px apart.

    Source: Zhuo and Sim 2011, Defocus map estimation from a single image, section 3.1.
    """
    from kornia.filters import spatial_gradient

    grey = _grey(photo)  # (1, 1, H, W)
    short = min(grey.shape[-2:])
    if short > size:
        grey = _resized(grey, size / short)
    gradients = torch.stack(
        [spatial_gradient(image, "diff")[0, 0].abs() for image in (grey, _blurred(grey, REBLUR))]
    )  # (2, 2, H, W): once or twice blurred, x or y
    widths = []
    for once, twice in gradients.flatten(2).unbind(1):  # (H W,) each
        steepest, place = twice.topk(max(1, round(STRONGEST * twice.numel())))
        ratio = float((once[place] / steepest.clamp_min(1e-6)).median())
        widths.append(REBLUR / math.sqrt(max(ratio**2 - 1.0, 1e-4)))
    return max(widths)


def copy_correlations(photos: Sequence[Tensor]) -> Tensor:
    """Return how well the centre of each photo is found again in each other one.

    Normalised correlation over all places and some scales, so that cropped, resized, recompressed,
    darker or brighter copies are found.

    Args:
        photos: N times (3, H, W) in [0, 1], of any sizes.

    Returns:
        (N, N) in [-1, 1], symmetric, with 1 for copies; the diagonal is of no use.
    """
    bands = [_copy_band(photo) for photo in photos]  # (1, 1, h, w) each
    centres = torch.cat([_centre(band, COPY_CENTRE) for band in bands])  # (N, 1, c, c)
    found = torch.full((len(photos), len(photos)), -1.0)
    for side in COPY_SCALES:
        template = F.interpolate(centres, (side, side), mode="bicubic", antialias=True)
        template = F.normalize((template - template.mean((2, 3), keepdim=True)).flatten(1))
        template = template.view(-1, 1, side, side)  # (N, 1, side, side) of norm 1
        for k, band in enumerate(bands):
            mean, square = (F.avg_pool2d(x, side, stride=1) for x in (band, band.square()))
            norm = ((square - mean.square()).clamp_min(1e-8) * side**2).sqrt()
            places = F.conv2d(band, template) / norm  # (1, N, h - side + 1, w - side + 1)
            found[k] = torch.maximum(found[k], places.amax((0, 2, 3)))
    return torch.maximum(found, found.T)


def _checked(photo: Tensor, number: int, size: int, smallest: int) -> Tensor:
    if photo.ndim != 3 or photo.shape[0] != 3 or not photo.is_floating_point():
        raise PFStorerError(
            f"Photo {number} has the shape {tuple(photo.shape)} and type {photo.dtype}; "
            "give (3, H, W) as floats in [0, 1]."
        )
    height, width = photo.shape[-2:]
    if min(height, width) < max(1, smallest):
        raise PFStorerError(
            f"Photo {number} has {width} x {height} px, too few for views of {size} px; use one "
            f"with at least {smallest} px on its short side."
        )
    photo = unit_range(photo.detach(), f"Photo {number}")
    values = photo.flatten(1)  # (3, H W)
    if float((values.amax(1) - values.amin(1)).max()) < FLAT:
        raise PFStorerError(f"Photo {number} is of one colour and shows nobody; leave it out.")
    return photo


def _count_warnings(count: int) -> list[str]:
    if count < FEWEST:
        photos = "is only 1 photo" if count == 1 else f"are only {count} photos"
        return [f"There {photos}; {BEST}, from different days and sides."]
    if count > MOST:
        return [f"There are {count} photos; {BEST}, so keep the sharpest and most different ones."]
    return []


def _blur_warnings(photos: Sequence[Tensor], size: int) -> list[str]:
    widths = [blur_width(photo, size) for photo in photos]
    return [
        f"Photo {number} is blurred (its edges are {width:.1f} px wide at {size} px, at most "
        f"{MOST_BLUR} is sharp); replace it by a sharper one or leave it out."
        for number, width in enumerate(widths, 1)
        if width > MOST_BLUR
    ]


def _copy_warnings(photos: Sequence[Tensor]) -> list[str]:
    copies = copy_correlations(photos) >= COPY
    warnings = []
    for k in range(1, len(photos)):
        first = copies[k, :k].nonzero().flatten().tolist()
        if first:
            warnings.append(
                f"Photo {k + 1} is nearly the same picture as photo {first[0] + 1}; keep one of "
                "them."
            )
    return warnings


def _face_warnings(photos: Sequence[Tensor], find_faces: Callable[[Tensor], int]) -> list[str]:
    warnings = []
    for number, photo in enumerate(photos, 1):
        count = find_faces(photo)
        if count == 0:
            warnings.append(
                f"No face was found in photo {number}; check that it shows the person's face."
            )
        elif count > 1:
            warnings.append(
                f"{count} faces were found in photo {number}; crop it to the person to be learned."
            )
    return warnings


def _grey(photo: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return rgb_to_grayscale(photo.detach().float().cpu()[None])  # (1, 1, H, W)


def _resized(image: Tensor, factor: float) -> Tensor:
    height, width = (max(1, round(side * factor)) for side in image.shape[-2:])
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    from kornia.filters import gaussian_blur2d

    side = 2 * math.ceil(3.0 * sigma) + 1
    return gaussian_blur2d(image, (side, side), (sigma, sigma), border_type="replicate")


def _copy_band(photo: Tensor) -> Tensor:
    """Return the photo's structure (1, 1, h, w): h w is about COPY_SIDE^2, brightness is gone."""
    height, width = photo.shape[-2:]
    factor = max(COPY_SIDE / math.sqrt(height * width), COPY_CENTRE / min(height, width))
    grey = _resized(_grey(photo), factor)
    return _blurred(grey, COPY_BAND[0]) - _blurred(grey, COPY_BAND[1])


def _centre(image: Tensor, side: int) -> Tensor:
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[..., top : top + side, left : left + side]
