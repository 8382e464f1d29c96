"""How far an archive is, in one line."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence

from .results import DONE, FAILED, KEPT, Result

RECENT = 300.0  # seconds that the speed is measured over
LINE_SECONDS = 30.0  # between two lines, where the output is no terminal


class Progress:
    """Tells of photos as they come to an end.

    Args:
        photos: in all.
        done: of them, before this run.
    """

    def __init__(self, photos: int, done: int) -> None:
        self.photos, self.before = photos, done
        self.ended: Counter[str] = Counter()
        self._times: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._last = 0.0
        self._in_place = sys.stdout.isatty()

    def __call__(self, results: Sequence[Result]) -> None:
        """Counts photos that came to an end, and shows the line."""
        self.ended.update(result.state for result in results)
        now = time.monotonic()
        self._times.append((now, self.ended.total()))
        # The time before the first photo is ComfyUI's start, and says nothing of those that follow.
        while len(self._times) > 2 and (self._times[0][1] == 0 or self._times[0][0] < now - RECENT):
            self._times.popleft()
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{self.line()[:width].ljust(width)}", end="", flush=True)
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            print(self.line(), flush=True)

    def per_minute(self) -> float:
        """Returns how many photos came to an end in a minute, of late."""
        (begun, first), (now, last) = self._times[0], self._times[-1]
        return 60 * (last - first) / (now - begun) if now > begun else 0.0

    def line(self) -> str:
        """Returns how far the archive is."""
        done = self.before + self.ended[DONE] + self.ended[KEPT]
        failed, speed = self.ended[FAILED], self.per_minute()
        left = self.photos - done - failed
        words = [f"{done} of {self.photos} done", f"{failed} failed", f"{speed:.1f} a minute"]
        if left and speed:
            words.append(f"{_duration(60 * left / speed)} left")
        return ", ".join(words)

    def close(self) -> None:
        """Shows the last line."""
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{self.line()[:width].ljust(width)}", flush=True)
        else:
            print(self.line(), flush=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
