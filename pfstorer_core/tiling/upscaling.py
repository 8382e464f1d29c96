"""In which sizes a picture is restored on its way to a large one."""

import math

UPSCALINGS = ("auto", "one pass", "progressive", "plain")
_FACTOR = 4.0  # of one pass, at most
_SLACK = 0.1  # of a pass: no further one for a factor of 4.6
_TOLERANCE = 1.5  # how much larger than what it knows a face may be in one pass

Size = tuple[int, int]  # height, width


def pass_sizes(
    size: Size, target: Size, upscaling: str, known: float | None, one_size: bool = False
) -> list[Size]:
    """Returns the size of the output of each pass of the restorer.

    A restorer turns faces much larger than those that it was trained on into something else. They
    are therefore restored at the size that it knows first, and the result is scaled up from there:
    in further passes ("progressive") or without restoring it again ("plain", where the last size
    is smaller than the target). "auto" takes one pass where that suffices.

    Args:
        size: (height, width) of the input in pixels; no pass gives less.
        target: (height, width) of the output in pixels.
        upscaling: one of `UPSCALINGS`.
        known: factor on the input's size at which its faces have the size that the restorer knows;
            None where there are none or nothing is known of them.
        one_size: whether the restorer knows pictures of one size only, so that further passes do
            harm; "auto" is then "plain" in place of "progressive".
    """
    factor = max(target[0] / size[0], target[1] / size[1])
    first = min(factor, _FACTOR if known is None else max(known, 1.0))
    tolerance = 1.0 if known is None else _TOLERANCE
    fits = factor <= max(1.0, known or 0.0) or (upscaling == "auto" and factor <= tolerance * first)
    if upscaling == "one pass" or fits:
        return [target]
    if upscaling == "plain" or (upscaling == "auto" and one_size):
        return [_scaled(size, target, factor, first)]
    start = 1.0 if known is None else first
    passes = max(1, math.ceil(math.log(factor / start, _FACTOR) - _SLACK))
    factors = [start * (factor / start) ** (k / passes) for k in range(passes)]
    if known is None:
        del factors[0]  # the input's own size
    return [*(_scaled(size, target, factor, x) for x in factors), target]


def _scaled(size: Size, target: Size, factor: float, share: float) -> Size:
    """Returns the size on the way to the target at which `share` of the factor is reached."""
    if share >= factor:
        return target
    way = math.log(share) / math.log(factor)
    height, width = (
        max(1, round(start * (end / start) ** way)) for start, end in zip(size, target, strict=True)
    )
    return height, width
