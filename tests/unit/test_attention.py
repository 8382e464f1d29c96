"""Attention of each device."""

import pytest
import torch
from torch.nn import functional as F

from pfstorer_core.attention import attention


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_views_are_laid_out_where_that_is_needed(kind: str, monkeypatch) -> None:
    seen = []
    true_attention = F.scaled_dot_product_attention

    def record(query, key, value):
        seen.extend(x.is_contiguous() for x in (query, key, value))
        return true_attention(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)

    class OnDevice(torch.Tensor):
        """A tensor that says it lies elsewhere."""

        device = torch.device(kind)

    query, key, value = (
        torch.randn(2, 5, 3, 4).transpose(1, 2).as_subclass(OnDevice) for _ in range(3)
    )
    found = attention(query, key, value)
    assert seen == [kind == "mps"] * 3
    plain = (x.as_subclass(torch.Tensor) for x in (query, key, value))
    torch.testing.assert_close(found.as_subclass(torch.Tensor), true_attention(*plain))
