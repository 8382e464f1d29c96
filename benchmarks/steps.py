"""Time by number of steps and by encoder_interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from report import Plot, Section, table
from timing import in_turns, load_mini, random_picture, timed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Steps and encoder interval"
STEPS, FEW_STEPS = (1, 2, 4, 8, 20), (1, 2)
INTERVALS = (1, 2, 4)
INTERVAL_STEPS, FEW_INTERVAL_STEPS = 8, 4
SIDE, SMALL_SIDE = 512, 128  # pixels
REPEATS = 3


def measure(quick: bool = False) -> Section:
    """Times restorations of few and many steps, and samplings that reuse encoder features."""
    mini = load_mini()
    side, repeats = (SMALL_SIDE, 1) if quick else (SIDE, REPEATS)
    steps, interval_steps = (FEW_STEPS, FEW_INTERVAL_STEPS) if quick else (STEPS, INTERVAL_STEPS)
    picture = random_picture(side, side)
    settings: dict[str, Any] = {"tile_size": side, "tile_batch": 1}

    def restore(count: int) -> Any:
        return lambda: mini.restore(picture, steps=count, **settings)

    whole = in_turns([timed(restore(count)) for count in steps], repeats, not quick)
    reusing = in_turns(
        [
            mini.sampling(picture, steps=interval_steps, encoder_interval=interval, **settings)
            for interval in INTERVALS
        ],
        repeats,
        not quick,
    )
    step_rows = [
        [str(count), f"{seconds:.2f}", f"{seconds / whole[-1]:.3f}"]
        for count, seconds in zip(steps, whole, strict=True)
    ]
    interval_rows = [
        [str(interval), f"{seconds:.2f}", f"{seconds / reusing[0]:.3f}"]
        for interval, seconds in zip(INTERVALS, reusing, strict=True)
    ]

    def draw(axes: Sequence[Axes]) -> None:
        axes[0].plot(steps, whole, "o-")
        axes[0].set(xlabel="steps", ylabel="seconds, whole restoration", xlim=0, ylim=0)
        axes[1].bar([str(i) for i in INTERVALS], [s / reusing[0] for s in reusing], width=0.5)
        axes[1].set(xlabel="encoder_interval", ylabel="sampling time / exact")

    text = (
        f"{side} x {side} pixels in one tile with the mini restorer. By steps: the whole "
        "restoration with VAE and colour fix (wavelet).\n\n"
        + table(["steps", "seconds", f"time / {steps[-1]} steps"], step_rows)
        + f"\n\nBy encoder interval: the sampling alone, {interval_steps} steps. This says what is "
        "saved, not what it does to the picture.\n\n"
        + table(["encoder_interval", "seconds", "time / exact"], interval_rows)
    )
    return Section(TITLE, text, Plot("steps", draw, panels=2))
