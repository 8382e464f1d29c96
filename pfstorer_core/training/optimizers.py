"""The optimizers of a training: AdamW, and Muon for short runs from nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PFStorerError

OPTIMIZERS = ("adamw", "muon")
_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon over the weights of linear and convolutional layers, all of one shape at once.

    PyTorch's own takes matrices only and runs them one by one, which leaves a GPU waiting for
    launches; older PyTorch has none. States are interchangeable with PyTorch's.

    Args:
        weights: parameters (C_out, ...); each is a matrix (C_out, the rest).
        lr: learning rate, in the size of AdamW's.
        weight_decay: of all.

    Source: Muon is Scalable for LLM Training (arXiv 2502.16982), for the scale of updates.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, weight_decay: float):
        super().__init__(list(weights), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes one step with the gradients that are there."""
        for group in self.param_groups:
            shapes: dict[Any, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    key = (weight.shape[0], weight[0].numel(), weight.dtype, weight.device)
                    shapes.setdefault(key, []).append(weight)
            for weights in shapes.values():
                self._step_together(weights, group["lr"], group["weight_decay"])

    def _step_together(
        self, weights: list[Tensor], learning_rate: float, weight_decay: float
    ) -> None:
        gradients = [weight.grad.flatten(1) for weight in weights if weight.grad is not None]
        for weight, gradient in zip(weights, gradients, strict=True):
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov's
        updates = orthogonalised(torch.stack(ahead))  # (N, C_out, rest)
        rate = learning_rate * 0.2 * max(updates.shape[1:]) ** 0.5
        torch._foreach_mul_(weights, 1 - learning_rate * weight_decay)
        shaped = [u.view_as(w) for u, w in zip(updates.to(weights[0].dtype), weights, strict=True)]
        torch._foreach_add_(weights, shaped, alpha=-rate)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Returns matrices (N, rows, columns) with singular values near 1.

    In bfloat16, on a processor in float32: many have no instructions for bfloat16, and take eight
    times as long.
    """
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)  # (N, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Optimizers:
    """AdamW, with Muon beside it for the weights of linear and convolutional layers if asked for.

    Args:
        model: its parameters that require gradients are trained.
        name: "adamw" or "muon".
        learning_rate: peak rate of both; Muon's updates are scaled to AdamW's size.
        weight_decay: of both.
    """

    def __init__(self, model: nn.Module, name: str, learning_rate: float, weight_decay: float):
        if name not in OPTIMIZERS:
            raise PFStorerError(
                f"The optimizer is {name!r}; expected one of {', '.join(OPTIMIZERS)}."
            )
        matrices: list[Tensor] = []
        if name == "muon":
            layers = (m for m in model.modules() if isinstance(m, _MATRIX_LAYERS))
            matrices = [m.weight for m in layers if m.weight.requires_grad]
        taken = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        self.all: list[torch.optim.Optimizer] = []
        if rest:
            adamw = torch.optim.AdamW(
                rest,
                lr=learning_rate,
                weight_decay=weight_decay,
                betas=(0.9, 0.98),
                fused=all(p.is_cuda for p in rest) or None,
            )
            self.all.append(adamw)
        if matrices:
            self.all.append(Muon(matrices, learning_rate, weight_decay))
