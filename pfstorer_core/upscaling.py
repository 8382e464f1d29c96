"""In how many passes a picture is scaled up."""

import math

UPSCALINGS = ("auto", "one pass", "progressive")
_FACTOR = 4.0  # of one pass, at most


def pass_sizes(
    size: tuple[int, int], target: tuple[int, int], trained: int, upscaling: str
) -> list[tuple[int, int]]:
    """Returns the (height, width) of the output of each pass, the last being the target.

    Args:
        size: (height, width) of the input in pixels.
        target: (height, width) of the output in pixels.
        trained: side in pixels of the pictures that the restorer was made for.
        upscaling: one of `UPSCALINGS`.
    """
    factor = max(target[0] / size[0], target[1] / size[1])
    if upscaling == "one pass" or (upscaling == "auto" and factor <= _FACTOR):
        return [target]
    passes = max(1, math.ceil(math.log(factor, _FACTOR)))
    share = [k / passes for k in range(1, passes)]
    between = [
        (
            max(1, round(size[0] * (target[0] / size[0]) ** x)),
            max(1, round(size[1] * (target[1] / size[1]) ** x)),
        )
        for x in share
    ]
    return [*between, target]
