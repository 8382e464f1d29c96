"""Folders of identity trainings, in which interrupted ones are found again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from ..errors import PFStorerError
from ..identities.adapter import AdapterInfo, IdentityAdapter
from ..weights.writing import check_writable
from .identity import IdentityTrainingConfig

logger = logging.getLogger(__name__)

STATE_VERSION = 2  # of unfinished runs; another cannot be gone on with
COMPLETE = "complete"  # an empty file in the folder of a run that has come to its end
STATE_SIZE = 32  # bytes per weight: float32 weights, averages, two moments; and the state before


def check_folders(
    folder: Path | None, unfinished: Path | None, warn: Callable[[str], None]
) -> None:
    """Finds out whether states and adapters can be written, before hours are spent."""
    if folder is not None:
        check_writable(folder)
    if unfinished is not None:
        try:
            check_writable(next(place for place in unfinished.parents if place.exists()))
        except PFStorerError as error:  # the adapter may be wanted for this workflow alone
            warn(f"{error} Else the adapter cannot be saved.")


def run_key(info: AdapterInfo, pictures: Sequence[Tensor], config: IdentityTrainingConfig) -> str:
    """Digits (hex) that tell this run apart from those on other bases, photos or settings."""
    settings = {k: v for k, v in config.to_dict().items() if k != "preview_every"}
    settings["checkpointing"] = False  # it changes no result, so a run may go on with it
    facts = [STATE_VERSION, info.base_fingerprint, info.unet_digest, settings]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for picture in pictures:
        key.update(str(tuple(picture.shape)).encode())
        key.update(picture.contiguous().numpy().tobytes())
    return key.hexdigest()[:16]


class Run:
    """One training: its folder, in which it goes on, and where it leaves an adapter at an end.

    Args:
        folder: where the folders of runs lie; None keeps no states.
        unfinished: file for the adapter of an interrupted run, to whose name digits of the run are
            added; None for none.
        key: see `run_key`.
    """

    def __init__(self, folder: Path | None, unfinished: Path | None, key: str) -> None:
        self.folder, self.key = folder, key
        self.unfinished = unfinished and unfinished.with_stem(f"{unfinished.stem}-{key[:6]}")

    @contextlib.contextmanager
    def opened(self, weights: int) -> Iterator[Path]:
        """The folder of this very run, while it goes on.

        A complete run is kept until another one begins: where ComfyUI ends before the adapter is
        saved, the same workflow gives it again at once.

        Args:
            weights: trained numbers, for whose states there must be room.

        Raises:
            PFStorerError: see `writing.check_writable`.
        """
        if self.folder is None:
            with tempfile.TemporaryDirectory(prefix="pfstorer-") as temporary:
                yield Path(temporary)
        else:
            run = self.folder / self.key
            for marker in self.folder.glob(f"*/{COMPLETE}"):
                if marker.parent != run:
                    shutil.rmtree(marker.parent, ignore_errors=True)
            state, complete = run / "state", (run / COMPLETE).exists()
            if state.exists():
                kind = "complete" if complete else "unfinished"
                logger.info("Going on with the %s training in %s", kind, run)
            if not complete:
                there = state.stat().st_size if state.exists() else 0
                check_writable(run, STATE_SIZE * weights - there)
            yield run
            with contextlib.suppress(OSError):  # on a full disk the run stays, which harms nothing
                (run / COMPLETE).touch()
        if self.unfinished is not None:
            with contextlib.suppress(OSError):  # a folder that has become read-only
                self.unfinished.unlink()

    def keep_unfinished(self, adapter: IdentityAdapter) -> None:
        """Leaves the adapter as far as it came."""
        if self.unfinished is None:
            return
        try:
            adapter.save(self.unfinished)
        except PFStorerError as error:  # what ended the training is to be told, not this
            logger.warning("%s", error)
        else:
            logger.info("The adapter after %d steps is in %s", adapter.info.steps, self.unfinished)
