"""How many operations a device has to start for a step, which a GPU waits for; and their time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from counting import launches
from networks import Networks, StepInputs, forward, plain_options
from report import Section, table
from timing import in_turns, timed
from torch import Tensor

TITLE = "Operations that a step starts"
SIDE = 64  # latent pixels
STEPS = 4  # of the sampling that is counted: what is encoded ahead is shared among them
PEOPLE = (0, 1, 3)
NAMES = ("restorer", "restorer and adapter", "restorer and three adapters")
TILES, SIDES = (1, 2, 8), (64, 96)
REPEATS = 3
DTYPES = (torch.float16, torch.bfloat16)


def measure(quick: bool = False, compiled: bool = False) -> Section:
    """Counts the operations of Stable Diffusion 2.1's shape, and times them on a GPU.

    Args:
        quick: fewer sizes.
        compiled: compares with weights that lie channels last, and with a compiled bare UNet, too.
            Under a restorer none is compiled.
    """
    counts = count_steps()
    bare, restorer = counts["bare UNet"], counts[NAMES[0]]
    rows = [["guided step, bare UNet", f"{bare:.0f}", "", ""]]
    for name in NAMES:
        base = bare if name == NAMES[0] else restorer
        rows.append(
            [
                f"guided step, {name}",
                f"{counts[name]:.0f}",
                f"{counts[name] - base:+.0f}",
                f"{counts[name] / base:.3f}",
            ]
        )
    whole, trained = counts["training, bare UNet"], counts["training step"]
    rows += [
        ["forward and backward, bare UNet, all weights", f"{whole:.0f}", "", ""],
        ["training step of an adapter", f"{trained:.0f}", "", f"{trained / whole:.3f}"],
    ]
    text = (
        "Counted on any machine with tensors that have a shape only: Stable Diffusion 2.1's UNet, "
        f"latent {SIDE} x {SIDE}, views and allocations left out, fused attention as one. A guided "
        f"step is a batch of two, the mean over a sampling of {STEPS} steps after its first "
        "preparations; the restorer is compared with the bare UNet, adapters with the restorer. A "
        "training step is forward and backward.\n\n"
        + table(["", "operations", "more", "ratio"], rows)
    )
    if torch.cuda.is_available():
        text += "\n\n" + _times(quick)
        if compiled:
            text += "\n\n" + variants("cuda", DTYPES[0])
    return Section(TITLE, text)


def count_steps(small: bool = False) -> dict[str, float]:
    """Returns the operations of each kind of step."""
    networks = Networks.build("meta", torch.float16, adapters=max(PEOPLE), small=small)
    inputs = StepInputs.random(networks, 2, SIDE, halves=2)
    networks.freeze()
    counts: dict[str, float] = {}
    with torch.no_grad():
        counts["bare UNet"] = launches(forward(networks, inputs, plain_options()))
        for people, name in zip(PEOPLE, NAMES, strict=True):
            sampling = steps_of(networks, inputs, networks.adapters[:people])
            _take(sampling)  # what a sampling prepares once
            counted = [launches(next(sampling)) for _ in range(STEPS)]
            counts[name] = sum(counted) / STEPS
    inputs = StepInputs.random(networks, 2, SIDE)
    networks.freeze(networks.unet)
    counts["training, bare UNet"] = launches(
        lambda: forward(networks, inputs, plain_options())().mean().backward()
    )
    networks.freeze(networks.adapters[0])
    predict = training_forward(networks, inputs)
    launches(predict)  # what a training prepares once
    counts["training step"] = launches(lambda: predict().mean().backward())
    return counts


def steps_of(
    networks: Networks, inputs: StepInputs, people: Sequence[Any]
) -> Iterator[Callable[[], Tensor]]:
    """Yields the steps of one sampling after another, as `LQCondition` runs them.

    Each has as many steps as are encoded at once; what a sampling prepares is kept.
    """
    from pfstorer_core.host.patch.ahead import STEPS as AHEAD
    from pfstorer_core.host.patch.lq import STEP, FeatureMemory
    from pfstorer_core.host.patch.sampling import SAMPLING, SamplingMemory

    memory = SamplingMemory()
    options = networks.options(inputs, people) | {SAMPLING: memory}
    schedule = torch.arange(1 + AHEAD, 0.0, -1)
    while True:
        for sigma in schedule[:-1]:
            memory.ahead.begin(sigma.expand(1), schedule, lambda sigmas: 100 * sigmas)
            step = FeatureMemory(ahead=memory.ahead).step(len(inputs.lq_latent))
            yield forward(networks, inputs, options | {STEP: step})
        memory.ahead.forget()


def training_forward(networks: Networks, inputs: StepInputs) -> Callable[[], Tensor]:
    """Returns a function that predicts as in a training of the first adapter."""
    from pfstorer_core.host.train.network import PersonalizedNetwork

    network = PersonalizedNetwork(
        networks.unet, networks.restorer, inputs.context[0], networks.adapters[0]
    )
    return lambda: network(inputs.x, inputs.timesteps, inputs.lq_latent)


def _times(quick: bool) -> str:
    rows = []
    for dtype in DTYPES[:1] if quick else DTYPES:
        networks = Networks.build("cuda", dtype, adapters=max(PEOPLE))
        networks.freeze()
        for side in SIDES[:1] if quick else SIDES:
            for tiles in TILES[:1] if quick else TILES:
                seconds = _time_steps(networks, StepInputs.random(networks, 2 * tiles, side, 2))
                ratios = [seconds[1] / seconds[0], *(s / seconds[1] for s in seconds[2:])]
                rows.append(
                    [
                        str(dtype).removeprefix("torch."),
                        f"{side} x {side}",
                        str(tiles),
                        *(f"{1000 * s:.1f}" for s in seconds),
                        *(f"{ratio:.3f}" for ratio in ratios),
                    ]
                )
                print(rows[-1], flush=True)
        del networks
        torch.cuda.empty_cache()
    header = ["type", "latent", "tiles", "bare, ms", "restorer, ms", "1 adapter, ms", "3, ms"]
    header += ["restorer / bare", "1 / restorer", "3 / restorer"]
    return "Milliseconds of a guided step, tiles at once:\n\n" + table(header, rows)


def variants(
    device: str, dtype: torch.dtype, *, side: int = SIDE, small: bool = False, backend: str = ""
) -> str:
    """Times what a user may try for speed: another layout of the weights, and `torch.compile`.

    Args:
        device, dtype: of the networks.
        side: of the latent.
        small: whether to take a smaller UNet.
        backend: of `torch.compile`; its own if empty.
    """
    usual, last = (Networks.build(device, dtype, small=small) for _ in range(2))
    for network in last.modules:
        network.to(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {}
    for name, networks in (("", usual), (", channels last", last)):
        networks.freeze()
        inputs = StepInputs.random(networks, 2, side, halves=2)
        runs[f"bare UNet{name}"] = forward(networks, inputs, plain_options())
        sampling = steps_of(networks, inputs, networks.adapters)
        runs[f"restorer and adapter{name}"] = functools.partial(_take, sampling)
    compiled = dataclasses.replace(
        usual, unet=torch.compile(usual.unet, backend=backend or "inductor")
    )
    inputs = StepInputs.random(usual, 2, side, halves=2)
    runs["bare UNet, compiled"] = forward(compiled, inputs, plain_options())
    several = [timed(_repeated(run, STEPS)) for run in runs.values()]
    with torch.no_grad():
        seconds = in_turns(several, REPEATS)
    rows = [[name, f"{1000 * s / STEPS:.1f}"] for name, s in zip(runs, seconds, strict=True)]
    return (
        f"Layout and compilation, {str(dtype).removeprefix('torch.')}, {side} x {side}, one tile. "
        "TorchCompileModel leaves a MODEL with a restorer as it is, so that only the bare UNet is "
        "compiled.\n\n" + table(["", "ms"], rows)
    )


def _take(sampling: Iterator[Callable[[], Tensor]]) -> Tensor:
    return next(sampling)()


def _time_steps(networks: Networks, inputs: StepInputs) -> list[float]:
    """Returns the seconds of a step of the bare UNet, and of each number of people."""
    from pfstorer_core.host.patch.ahead import STEPS as AHEAD

    bare = timed(_repeated(lambda: forward(networks, inputs, plain_options())(), AHEAD))
    runs = [bare]
    for people in PEOPLE:
        sampling = steps_of(networks, inputs, networks.adapters[:people])
        with torch.no_grad():
            _take(sampling)
        runs.append(timed(_repeated(functools.partial(_take, sampling), AHEAD)))
    with torch.no_grad():
        return [seconds / AHEAD for seconds in in_turns(runs, REPEATS)]


def _repeated(run: Callable[[], object], count: int) -> Callable[[], None]:
    def several() -> None:
        for _ in range(count):
            run()

    return several
