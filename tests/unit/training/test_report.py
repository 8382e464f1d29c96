"""Tests of the pictures that a training shows."""

import pytest
import torch

from pfstorer_core.training.report import loss_curve, report_sheet

BACKGROUND = torch.tensor([24, 24, 27]) / 255
SMOOTH = torch.tensor([125, 211, 252]) / 255


def rows_of(picture: torch.Tensor, colour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (y, x) of the pixels of a colour."""
    return torch.nonzero((picture - colour[:, None, None]).abs().amax(0) < 0.01, as_tuple=True)


def test_a_falling_loss_is_a_falling_line() -> None:
    picture = loss_curve([1 - k / 100 for k in range(100)], 100, 200, 80)
    assert picture.shape == (3, 80, 200)
    y, x = rows_of(picture, SMOOTH)
    left, right = y[x < 20].float().mean(), y[x > 180].float().mean()
    assert right > left + 40, "rows count downwards"
    assert x.min() < 10 and x.max() > 190


def test_the_axis_is_the_whole_run() -> None:
    _, x = rows_of(loss_curve([0.5] * 50, 100, 200, 80), SMOOTH)
    assert 90 < x.max() < 110, "half of the steps fill half of the picture"


@pytest.mark.parametrize("losses", [[], [0.3], [float("nan")] * 5])
def test_too_few_losses_give_an_empty_picture(losses: list[float]) -> None:
    picture = loss_curve(losses, 10, 64, 32)
    assert (picture == BACKGROUND[:, None, None]).all()


def test_losses_that_are_no_numbers_leave_a_gap_in_a_sound_picture() -> None:
    values = [0.5] * 60
    expected = loss_curve(values, 60, 200, 80)
    values[30] = float("inf")
    values[31] = float("nan")
    picture = loss_curve(values, 60, 200, 80)
    assert torch.equal(picture, expected), "a level line stays level"


def test_one_outlier_does_not_flatten_the_rest() -> None:
    values = [1 - k / 500 for k in range(500)]
    values[3] = 1e4
    y, _ = rows_of(loss_curve(values, 500, 300, 100), SMOOTH)
    assert y.max() - y.min() > 60


@pytest.mark.parametrize(("side", "shown"), [(32, 128), (128, 128), (160, 160)])
def test_a_sheet_shows_now_beside_lq_and_above_clean(side: int, shown: int) -> None:
    pictures = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    sheet = report_sheet([0.5, 0.4, 0.3], 10, pictures)
    assert sheet.shape == (3, 2 * shown, 2 * shown)
    assert 0 <= sheet.min() and sheet.max() <= 1
    lq, now, curve, clean = (part for row in sheet.chunk(2, 1) for part in row.chunk(2, 2))
    assert torch.equal(curve, loss_curve([0.5, 0.4, 0.3], 10, shown, shown))
    for part, picture in zip((lq, now, clean), pictures, strict=True):
        torch.testing.assert_close(part.mean((1, 2)), picture.mean((1, 2)), rtol=0, atol=0.02)
        if side == shown:
            assert torch.equal(part, picture)
