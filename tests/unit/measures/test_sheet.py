import torch

from pfstorer_core.measures.comparison import compare
from pfstorer_core.measures.sheet import panels, sheet, sheet_notes

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class MeanColour:
    """An embedding that hand calculation can follow: the direction of the mean colour."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)


def plain(*colour: float, size: tuple[int, int] = (40, 40)) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, *size)


def test_panels_keep_the_order_and_the_first_size() -> None:
    red, green, blue = (plain(*colour, size=(40, 60)) for colour in COLOURS.values())
    other = plain(1, 1, 1, size=(60, 40))
    result = compare([red, other], truth=[green, other], lq=[blue, other])
    shown = panels(result)
    assert shown.shape == (6, 3, 40, 60)
    assert [picture.mean((1, 2)).tolist() for picture in shown[:3]] == [
        [0, 0, 1],
        [1, 0, 0],
        [0, 1, 0],
    ]
    # the narrow picture is shown whole, between grey borders
    assert torch.allclose(shown[3, :, :, 30], torch.ones(3, 40))
    assert torch.equal(shown[3, :, :, 0], torch.full((3, 40), 0.5))


def test_the_sheet_shows_all_in_order() -> None:
    red, green, blue = (plain(*colour, size=(300, 300)) for colour in COLOURS.values())
    result = compare([red, green], truth=[green], lq=[blue], base=[green, red])
    drawn = sheet(result)
    assert 0 <= drawn.min() and drawn.max() <= 1
    height, width = drawn.shape[1:]
    assert height > 600 and width > 1200

    def colours(row: int) -> list[list[float]]:
        middle = (width - 6) / 4
        at = [round(6 + (k + 0.5) * middle) for k in range(4)]
        return [drawn[:, row, x].tolist() for x in at]

    expected = {"r": [1, 0, 0], "g": [0, 1, 0], "b": [0, 0, 1]}
    assert colours(200) == [expected[c] for c in "bgrg"]
    assert colours(height - 150) == [expected[c] for c in "brgg"]


def test_without_a_truth_the_sheet_shows_a_reference() -> None:
    result = compare(
        [plain(1, 0, 0, size=(300, 300))],
        references=[plain(0, 1, 0, size=(90, 90))],
        embedding=MeanColour(),
    )
    drawn = sheet(result)
    assert drawn[:, 150, drawn.shape[2] // 4].tolist() == [1, 0, 0]
    assert drawn[:, 150, drawn.shape[2] * 3 // 4].tolist() == [0, 1, 0]
    assert len(panels(result)) == 1


def test_many_pictures_make_no_boundless_sheet() -> None:
    result = compare([plain(1, 0, 0, size=(400, 400))] * 30, truth=[plain(0, 1, 0)] * 30)
    assert max(sheet(result).shape) <= 8192
    assert sheet_notes(result) == []
    many = compare([plain(1, 0, 0, size=(9, 7))] * 400, truth=[plain(0, 1, 0)])
    assert 8000 < sheet(many).shape[1] <= 8192
    (note,) = sheet_notes(many)
    assert note == "The picture shows the first 90 of 400 items; the figures are of all."
