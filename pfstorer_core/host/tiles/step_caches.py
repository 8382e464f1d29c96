"""What step caches of other nodes keep, for each batch of tiles."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any


class StepCaches:
    """Gives each batch of tiles copies of its own of what step caches of other nodes keep.

    Nodes such as EasyCache compare an evaluation of the UNet with the one before, and so one tile
    with another. What they keep lies in the transformer options, as an object that can be reset.
    The given object serves as the pattern and is not used itself.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[str, Hashable], Any] = {}

    def of(self, key: Hashable, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the options to replace in the evaluation of a batch of tiles, told by its key."""
        own = {}
        for name, value in options.items():
            if hasattr(value, "clone") and hasattr(value, "reset"):  # no tensor has both
                if (name, key) not in self._copies:
                    self._copies[name, key] = copy.deepcopy(value)
                own[name] = self._copies[name, key]
                if hasattr(own[name], "skip_current_step"):  # it begins each step so
                    own[name].skip_current_step = False
        return own

    def forget(self) -> None:
        """Drops the copies: the tiles are others from now on."""
        self._copies.clear()
