"""How nodes that take lists pair them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def paired(**lists: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the inputs of each run, as ComfyUI pairs lists for nodes that take single values.

    They go by position; the last value of a shorter list stands for those that it lacks.

    Args:
        **lists: values by the input's name, at least one of each.
    """
    count = max(len(values) for values in lists.values())
    return [
        {name: values[min(k, len(values) - 1)] for name, values in lists.items()}
        for k in range(count)
    ]
