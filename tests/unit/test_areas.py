"""Means over areas."""

import pytest
import torch
from torch.nn import functional as F

from pfstorer_core.areas import area_mean


def test_means() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert area_mean(x, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(area_mean(x, (4, 4)), x)


@pytest.mark.parametrize(("size", "elsewhere"), [((3, 2), True), ((2, 3), False)])
def test_what_mps_cannot_divide_is_divided_on_the_cpu(size, elsewhere, monkeypatch) -> None:
    class OnMPS(torch.Tensor):
        """A tensor that says it lies on Apple's GPU."""

        device = torch.device("mps")

        def cpu(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    seen = []
    true_pool = F.adaptive_avg_pool2d

    def pool(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        seen.append(isinstance(x, OnMPS))
        return true_pool(x.as_subclass(torch.Tensor), size)

    monkeypatch.setattr(F, "adaptive_avg_pool2d", pool)
    x = torch.randn(1, 2, 4, 6)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)  # there is no such device
    found = area_mean(x.as_subclass(OnMPS), size)
    assert seen == [not elsewhere]
    assert torch.equal(found.as_subclass(torch.Tensor), true_pool(x, size))
