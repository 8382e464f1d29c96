"""How far an archive is, in one line."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from .results import FAILED, Result

RECENT = 300.0  # seconds that the speed is measured over
LINE_SECONDS = 30.0  # between two lines, where the output is no terminal


class Progress:
    """Tells of photos as they come to an end.

    Args:
        photos: in all.
        done: of them, before this run.
        recorded: returns how many more are done by workers that have not told of them yet.
    """

    def __init__(self, photos: int, done: int, recorded: Callable[[], int]) -> None:
        self.photos, self.before, self.recorded = photos, done, recorded
        self.ended: Counter[str] = Counter()
        # From the first photo on: the time before is ComfyUI's start, and says nothing of the rest.
        self._times: deque[tuple[float, int]] = deque()
        self._last = 0.0
        self._in_place = sys.stdout.isatty()

    def __call__(self, results: Sequence[Result]) -> None:
        """Counts photos that came to an end, and shows the line."""
        self.ended.update(result.state for result in results)
        now, ended = time.monotonic(), self.ended.total() + self.recorded()
        if ended == self._counted():
            return
        self._times.append((now, ended))
        while len(self._times) > 2 and self._times[0][0] < now - RECENT:
            self._times.popleft()
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{self.line()[:width].ljust(width)}", end="", flush=True)
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            print(self.line(), flush=True)

    def _counted(self) -> int:
        """Returns how many photos of this run had come to an end when they were last counted."""
        return self._times[-1][1] if self._times else 0

    def per_minute(self) -> float:
        """Returns how many photos came to an end in a minute, of late; 0 if that is not known."""
        if len(self._times) < 2:
            return 0.0
        (begun, first), (now, last) = self._times[0], self._times[-1]
        return 60 * (last - first) / (now - begun) if now > begun else 0.0

    def line(self) -> str:
        """Returns how far the archive is."""
        failed, speed = self.ended[FAILED], self.per_minute()
        done = self.before + self._counted() - failed
        left = self.photos - done - failed
        words = [f"{done} of {self.photos} done", f"{failed} failed"]
        if speed:
            words.append(f"{speed:.1f} a minute")
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
