"""The counting behind the guide's memory table."""

import pytest
import torch
from counted_memory import UNET, LiveMemory, Pass, fake_gpu, networks, unet_pass
from memory_table import Row

KIB = 1024


def test_living_tensors_are_counted_once() -> None:
    given = torch.zeros(KIB // 4)
    with LiveMemory([given]) as memory:
        same = given.view(2, -1)
        assert memory.now == 0
        first = same + 1
        second = first.t()
        assert (memory.now, memory.peak) == (KIB, KIB)
        third = second * 2
        assert memory.now == 2 * KIB
        del first, second
        assert memory.now == KIB
        del third
    assert (memory.now, memory.peak) == (0, 2 * KIB)


def test_what_the_backward_pass_needs_is_alive() -> None:
    weight = torch.zeros(KIB // 4, requires_grad=True)
    with LiveMemory([weight]) as memory:
        out = (weight.exp().exp() * 2).sum()
        kept = memory.now
        out.backward()
    assert kept == 2 * KIB + 4, "what both exponentials gave, and the sum"
    assert weight.grad is not None


def test_checkpointing_keeps_less() -> None:
    small = UNET | {
        "model_channels": 64,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "num_head_channels": 32,
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
    }
    counts: list[Pass] = []
    with fake_gpu(True):
        nets = networks(torch.float16, "cuda", trained=True, shape=small)
        for batch, checkpoint in ((1, False), (2, False), (2, True)):
            counts.append(unet_pass(nets, batch, 16, checkpoint=checkpoint))
    one, two, again = counts
    assert one.kept < two.kept < 2 * one.kept, "copies of the weights do not grow with the batch"
    assert again.kept < two.kept / 4
    assert 0 < two.largest_part < two.kept / 4


def test_a_row_says_where_it_fits() -> None:
    row = Row("", fixed=2 * 2**30, passing=2**31)  # 2 + 1.3 * 2 + 1 = 5.6 GiB
    assert row.total == pytest.approx(5.6)
    assert [row.fits(budget) for budget in (5, 6, 8)] == ["no", "barely", "yes"]
