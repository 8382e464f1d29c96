"""Cost of restorer and adapters: steps of a Stable Diffusion 2.1 UNet with and without them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from networks import Networks, StepInputs, forward, plain_options
from report import Section, table
from timing import in_turns, timed

TITLE = "Step cost on the shape of Stable Diffusion 2.1"
REPEATS = 7


def measure(quick: bool = False) -> Section:
    """Times steps with random weights.

    A guided step (classifier-free guidance) is a batch of two. A training step is forward and
    backward of the same batch: of all weights of the bare UNet, and of the adapter's alone.
    """
    from pfstorer_core.host.patch.sampling import SAMPLING, SamplingMemory

    gpu = torch.accelerator.current_accelerator(check_available=True)
    device, dtype = (gpu, torch.float16) if gpu else (torch.device("cpu"), torch.float32)
    side, repeats = (64 if gpu else 16), (1 if quick else REPEATS)
    networks = Networks.build(device, dtype, small=quick)
    unet, (adapter,) = networks.unet, networks.adapters
    inputs = StepInputs.random(networks, 2, side, halves=2)
    plain = plain_options()
    kept = {SAMPLING: SamplingMemory()}
    steered, personalized, three = (
        networks.options(inputs, [adapter] * count) for count in (0, 1, 3)
    )

    def step(transformer_options: dict) -> Callable[[], object]:
        run = forward(networks, inputs, transformer_options | kept)
        return torch.no_grad()(run)

    def training_step(transformer_options: dict, trained: torch.nn.Module) -> Callable[[], object]:
        def run() -> None:
            networks.freeze(trained)
            forward(networks, inputs, transformer_options)().mean().backward()
            trained.zero_grad(set_to_none=True)

        return run

    networks.freeze()
    bare, steered_time, one, several = in_turns(
        [timed(step(options)) for options in (plain, steered, personalized, three)],
        repeats,
        warm_up=not quick,
    )
    whole, adapter_only = in_turns(
        [timed(training_step(plain, unet)), timed(training_step(personalized, adapter))],
        max(1, repeats // 2),
        warm_up=not quick,
    )
    weights = sum(parameter.numel() for parameter in adapter.parameters())
    what = "A small UNet of the kind of" if quick else "The shape of"
    rows = [
        [name, f"{seconds:.3f}", other, f"{seconds / base:.3f}" if base else ""]
        for name, seconds, other, base in (
            ("guided step, bare UNet", bare, "", None),
            ("guided step, restorer", steered_time, "bare UNet", bare),
            ("guided step, restorer and adapter", one, "restorer", steered_time),
            ("guided step, restorer and three adapters", several, "restorer", steered_time),
            ("forward and backward, bare UNet, all weights", whole, "", None),
            ("training step of an adapter", adapter_only, "forward and backward", whole),
        )
    ]
    return Section(
        TITLE,
        f"{what} Stable Diffusion 2.1's UNet with random weights, latent {side} x {side}, "
        f"{str(dtype).removeprefix('torch.')}; an adapter has {len(adapter.sites)} blocks and "
        f"{weights / 1e6:.1f} M parameters ({2 * weights / 1e6:.0f} MB in fp16). A guided step is "
        "a batch of two; a training step is forward and backward of the same batch.\n\n"
        + table(["", "seconds", "compared with", "ratio"], rows),
    )
