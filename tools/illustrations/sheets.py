"""Sheets of labelled pictures."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.pictures.resizing import resize_bicubic

LARGEST_FILE = 60_000  # bytes
FONT_SIZE, GAP, WIDEST = 22, 8, 560  # pixels
PAPER, INK = "#262a31", "#e6e6e6"

Cell = tuple[str, Tensor]  # label, picture (3, H, W) in [0, 1]
Rows = list[list[Cell]]


def sheet(rows: Rows, cell: int, widest: int = WIDEST) -> Image.Image:
    """Draws rows of pictures, each below its label.

    Rows are broken into lines, since the frontend shows help in a narrow column.

    Args:
        rows: of (label, picture); pictures of a row may differ in width.
        cell: height of a drawn picture in pixels.
        widest: of a line in pixels.
    """
    font = ImageFont.load_default(size=FONT_SIZE)
    drawn = [[(label, _scaled(picture, cell)) for label, picture in row] for row in rows]
    lines = [line for row in drawn for line in _broken(row, widest)]
    titles = [(FONT_SIZE + GAP) * any(label for label, _ in line) for line in lines]
    width = max(sum(p.width + GAP for _, p in line) for line in lines) + GAP
    height = GAP + len(lines) * (cell + GAP) + sum(titles) + 2 * GAP * (len(drawn) - 1)
    paper = Image.new("RGB", (width, height), PAPER)
    drawing = ImageDraw.Draw(paper)
    y = GAP
    for row in drawn:
        for line in _broken(row, widest):
            x = GAP
            y += (FONT_SIZE + GAP) * any(label for label, _ in line)
            for label, picture in line:
                place = x + picture.width // 2, y - GAP // 2
                drawing.text(place, label, INK, font, anchor="md")
                paper.paste(picture, (x, y))
                x += picture.width + GAP
            y += cell + GAP
        y += 2 * GAP
    return paper


def _broken(row: list[tuple[str, Image.Image]], widest: int) -> list[list[tuple[str, Image.Image]]]:
    """Returns a row as lines of nearly equal length that are not wider than `widest`."""
    lines = math.ceil(sum(picture.width + GAP for _, picture in row) / widest)
    length = math.ceil(len(row) / lines)
    return [row[k : k + length] for k in range(0, len(row), length)]


def save(picture: Image.Image, path: Path, largest: int = LARGEST_FILE) -> None:
    """Writes a JPEG of the best quality that keeps the file small, of `largest` bytes at most."""
    for quality in range(90, 40, -5):
        picture.save(path, "JPEG", quality=quality, optimize=True)
        if path.stat().st_size <= largest:
            return
    raise RuntimeError(f"{path.name} is larger than {largest} bytes at quality {quality}")


def _scaled(picture: Tensor, height: int) -> Image.Image:
    width = round(picture.shape[-1] * height / picture.shape[-2])
    return to_pil_image(resize_bicubic(picture[None].cpu().float(), (height, width))[0].clamp(0, 1))
