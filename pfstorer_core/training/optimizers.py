"""The optimizers of a training: AdamW, and Muon for short runs from nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import PFStorerError

OPTIMIZERS = ("adamw", "muon")
_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Optimizers:
    """AdamW, with Muon beside it for the weights of linear and convolutional layers if asked for.

    PyTorch's Muon takes matrices only; a convolution's weight is given to it as a (C_out, C_in * k
    * k) view that shares the parameter's memory, so build this after the model is on its device.

    Args:
        model: its parameters that require gradients are trained.
        name: "adamw" or "muon".
        learning_rate: peak rate of both; Muon's updates are scaled to AdamW's size.
        weight_decay: of both.

    Source: Muon is Scalable for LLM Training (arXiv 2502.16982), for the scaling.
    """

    def __init__(self, model: nn.Module, name: str, learning_rate: float, weight_decay: float):
        if name not in OPTIMIZERS:
            raise PFStorerError(
                f"The optimizer is {name!r}; expected one of {', '.join(OPTIMIZERS)}."
            )
        trained = [p for p in model.parameters() if p.requires_grad]
        self._matrices: list[Tensor] = []
        if name == "muon":
            layers = (m for m in model.modules() if isinstance(m, _MATRIX_LAYERS))
            self._matrices = [m.weight for m in layers if m.weight.requires_grad]
        self._views = [nn.Parameter(p.data.flatten(1)) for p in self._matrices]
        if any(
            v.data_ptr() != p.data_ptr() for v, p in zip(self._views, self._matrices, strict=True)
        ):
            raise PFStorerError(
                "Muon cannot train weights in the channels_last memory format; keep the model "
                "contiguous or use adamw."
            )
        taken = {id(p) for p in self._matrices}
        rest = [p for p in trained if id(p) not in taken]
        self.all: list[torch.optim.Optimizer] = []
        if rest:
            adamw = torch.optim.AdamW(
                rest, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98)
            )
            self.all.append(adamw)
        if self._views:
            muon = torch.optim.Muon(
                self._views,
                lr=learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self.all.append(muon)

    def take_gradients(self) -> None:
        """Hands the matrices' gradients to Muon; call after backward, before clipping."""
        for parameter, view in zip(self._matrices, self._views, strict=True):
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)

    def drop_gradients(self, model: nn.Module) -> None:
        """Frees all gradients, the views' too."""
        model.zero_grad(set_to_none=True)
        for view in self._views:
            view.grad = None
