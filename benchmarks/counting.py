"""Counts what a computation launches, on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Without alias in their schema, though they launch nothing.
_ALLOCATIONS = ("empty", "new_empty", "_unsafe_view", "lift_fresh", "_reshape_alias")


class LaunchCounter:
    """Counts the operations that a device would have to start while the context lasts.

    Views, reshapes and allocations are left out. Fused attention is one, forward and backward,
    which only a GPU has; so tensors without data (device "meta") give a GPU's count.
    """

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self._modes = (_Attention(self.operations), _Operations(self.operations))

    @property
    def total(self) -> int:
        """Launches so far."""
        return self.operations.total()

    def __enter__(self) -> LaunchCounter:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


def launches(run: Callable[[], object]) -> int:
    """Returns how many operations a function starts."""
    with LaunchCounter() as counter:
        run()
    return counter.total


class _Operations(TorchDispatchMode):
    def __init__(self, operations: Counter[str]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not _is_free(func):
            self.operations[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


class _Attention(TorchFunctionMode):
    def __init__(self, operations: Counter[str]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[0].device.type == "meta":
            return _FusedAttention.apply(self.operations, *args[:3])
        return func(*args, **(kwargs or {}))


class _FusedAttention(torch.autograd.Function):
    """Shapes of the fused kernel, whose result lies as its queries do."""

    @staticmethod
    def forward(ctx: Any, operations: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        operations["attention"] += 1
        ctx.operations = operations
        ctx.save_for_backward(query, key, value)
        batch, heads, count, _ = query.shape
        return query.new_empty(batch, count, heads, value.shape[-1]).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.operations["attention_backward"] += 1
        return None, *(torch.empty_like(x) for x in ctx.saved_tensors)


def _is_free(func: Any) -> bool:
    name = func.overloadpacket.__name__
    if name.startswith(_ALLOCATIONS) or func.namespace == "prim":
        return True
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
