"""Cost of restorer and adapters: steps of a Stable Diffusion 2.1 UNet with and without them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from networks import Networks, StepInputs, forward, plain_options
from report import Section, table
from timing import in_turns, timed

TITLE = "Step cost on the shape of Stable Diffusion 2.1"
REPEATS = 7


class Steps:
    """Steps of a UNet with random weights, with and without restorer and adapters.

    Args:
        quick: of a smaller UNet.
    """

    def __init__(self, quick: bool) -> None:
        from pfstorer_core.host.patch.sampling import SAMPLING, SamplingMemory

        gpu = torch.accelerator.current_accelerator(check_available=True)
        device, self.dtype = (gpu, torch.float16) if gpu else (torch.device("cpu"), torch.float32)
        self.side = 64 if gpu else 16
        self.networks = Networks.build(device, self.dtype, small=quick)
        self.unet, (self.adapter,) = self.networks.unet, self.networks.adapters
        self.inputs = StepInputs.random(self.networks, 2, self.side, halves=2)
        self.plain = plain_options()
        self.steered, self.personalized, self.three = (
            self.networks.options(self.inputs, [self.adapter] * count) for count in (0, 1, 3)
        )
        self._sampling = {SAMPLING: SamplingMemory()}

    def guided(self, transformer_options: dict) -> Callable[[], object]:
        """Returns a guided step of a sampling: a batch of two."""
        self.networks.freeze()
        options = transformer_options | self._sampling
        return torch.no_grad()(forward(self.networks, self.inputs, options))

    def training(self, transformer_options: dict, trained: torch.nn.Module) -> Callable[[], object]:
        """Returns forward and backward of the same batch, for the weights of one module."""

        def run() -> None:
            self.networks.freeze(trained)
            forward(self.networks, self.inputs, transformer_options)().mean().backward()
            trained.zero_grad(set_to_none=True)

        return run


def measure(quick: bool = False) -> Section:
    """Times steps with random weights.

    A guided step (classifier-free guidance) is a batch of two. A training step is forward and
    backward of the same batch: of all weights of the bare UNet, and of the adapter's alone.
    """
    steps, repeats = Steps(quick), (1 if quick else REPEATS)
    ways = (steps.plain, steps.steered, steps.personalized, steps.three)
    bare, steered, one, several = in_turns(
        [timed(steps.guided(options)) for options in ways], repeats, warm_up=not quick
    )
    whole, adapter_only = in_turns(
        [
            timed(steps.training(steps.plain, steps.unet)),
            timed(steps.training(steps.personalized, steps.adapter)),
        ],
        max(1, repeats // 2),
        warm_up=not quick,
    )
    weights = sum(parameter.numel() for parameter in steps.adapter.parameters())
    what = "A small UNet of the kind of" if quick else "The shape of"
    rows = [
        [name, f"{seconds:.3f}", other, f"{seconds / base:.3f}" if base else ""]
        for name, seconds, other, base in (
            ("guided step, bare UNet", bare, "", None),
            ("guided step, restorer", steered, "bare UNet", bare),
            ("guided step, restorer and adapter", one, "restorer", steered),
            ("guided step, restorer and three adapters", several, "restorer", steered),
            ("forward and backward, bare UNet, all weights", whole, "", None),
            ("training step of an adapter", adapter_only, "forward and backward", whole),
        )
    ]
    return Section(
        TITLE,
        f"{what} Stable Diffusion 2.1's UNet with random weights, latent {steps.side} x "
        f"{steps.side}, {str(steps.dtype).removeprefix('torch.')}; an adapter has "
        f"{len(steps.adapter.sites)} blocks and {weights / 1e6:.1f} M parameters "
        f"({2 * weights / 1e6:.0f} MB in fp16). A guided step is a batch of two; a training step "
        "is forward and backward of the same batch.\n\n"
        + table(["", "seconds", "compared with", "ratio"], rows),
    )
