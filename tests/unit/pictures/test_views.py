import json
import math

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.views import ViewConfig, random_view

PLAIN = {"flip_probability": 0.0, "rotation": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_views(
    photo: torch.Tensor, count: int, size: int, config: ViewConfig, generator: torch.Generator
) -> torch.Tensor:
    """Views drawn one after another, (count, 3, size, size)."""
    return torch.stack([random_view(photo, size, config, generator) for _ in range(count)])


def coordinates(height: int, width: int) -> torch.Tensor:
    """A photo (3, H, W) whose red is x / W, green y / H (pixel centres) and blue 0.5."""
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    return torch.stack(
        [
            x.expand(height, width),
            y[:, None].expand(height, width),
            torch.full((height, width), 0.5),
        ]
    )


def fitted(view: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The affine map from view px to photo px that the colours tell.

    Returns:
        matrix (2, 2), offset (2,), and the largest residual in photo px away from the rim, where
        resampling sees beyond the crop.
    """
    size = view.shape[-1]
    place = torch.arange(size, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(place, place, indexing="ij")
    px = torch.stack([view[0] * width, view[1] * height], dim=-1).double()  # (size, size, 2)
    known = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (size, size, 3)
    inner = slice(4, -4)
    design, values = known[inner, inner].reshape(-1, 3), px[inner, inner].reshape(-1, 2)
    solution = torch.linalg.lstsq(design, values).solution  # (3, 2)
    residual = float((design @ solution - values).abs().max())
    return solution[:2].T, solution[2], residual


@pytest.mark.parametrize(("height", "width"), [(200, 200), (150, 420), (500, 130)])
def test_pixels_come_from_a_square_window_inside_the_photo(height: int, width: int) -> None:
    photo, size = coordinates(height, width), 96
    config = ViewConfig(**PLAIN)
    for view in random_views(photo, 20, size, config, seeded()):
        matrix, offset, residual = fitted(view, height, width)
        side = float(matrix[0, 0]) * size
        assert residual < 0.1
        assert float((matrix - torch.eye(2) * side / size).abs().max()) < 2e-3
        short = min(height, width)
        assert max(0.4 * short, size / 1.25) - 1.0 <= side <= short + 0.1
        end = offset + side
        assert float(offset.min()) > -0.1
        assert float(end[0]) < width + 0.1 and float(end[1]) < height + 0.1
        assert torch.allclose(view[2], torch.full_like(view[2], 0.5), atol=1e-5)


def test_flip_mirrors_the_same_window() -> None:
    photo = coordinates(160, 240)
    plain = random_views(photo, 5, 64, ViewConfig(**PLAIN), seeded(2))
    always = ViewConfig(flip_probability=1.0, rotation=0.0)
    assert torch.equal(random_views(photo, 5, 64, always, seeded(2)), plain.flip(-1))


def test_rotation_is_a_similarity_inside_the_photo() -> None:
    height, width, size = 300, 220, 64
    config = ViewConfig(flip_probability=0.0, rotation=15.0)
    angles = []
    for view in random_views(coordinates(height, width), 40, size, config, seeded(1)):
        matrix, _, residual = fitted(view, height, width)
        # Reflection at a border would bend the coordinates by whole pixels.
        assert residual < 0.2
        scale = math.sqrt(abs(float(torch.linalg.det(matrix))))
        rotation = matrix / scale
        assert torch.allclose(rotation @ rotation.T, torch.eye(2).double(), atol=0.01)
        angles.append(math.degrees(math.atan2(float(rotation[1, 0]), float(rotation[0, 0]))))
    assert max(angles) <= 15.1 and min(angles) >= -15.1
    assert max(angles) > 10.0 and min(angles) < -10.0


def test_rotated_window_keeps_its_scale() -> None:
    photo = coordinates(400, 400)
    config = ViewConfig(window=(0.5, 0.5), flip_probability=0.0, rotation=30.0)
    for view in random_views(photo, 10, 64, config, seeded()):
        matrix, _, _ = fitted(view, 400, 400)
        side = 64.0 * math.sqrt(float(torch.linalg.det(matrix)))
        assert side == pytest.approx(200.0, rel=0.01)


def test_windows_at_the_views_size_are_exact_crops() -> None:
    photo = torch.rand(3, 200, 128, generator=seeded(5))
    config = ViewConfig(window=(1.0, 1.0), **PLAIN)
    tops = set()
    for view in random_views(photo, 12, 128, config, seeded()):
        found = [t for t in range(73) if torch.equal(view, photo[:, t : t + 128])]
        assert len(found) == 1
        tops.add(found[0])
    assert len(tops) > 6


def test_a_face_appears_anywhere_and_at_any_size() -> None:
    photo = torch.zeros(3, 300, 400)
    photo[:, 120:180, 170:230] = 1.0  # the face: 60 px in the middle
    views = random_views(photo, 300, 64, ViewConfig(), seeded())[:, 0]  # (300, 64, 64)
    place = torch.arange(64) + 0.5
    mass = views.sum(dim=(1, 2))
    whole = mass > 60.0
    centre_x = (views * place).sum(dim=(1, 2))[whole] / mass[whole]
    centre_y = (views * place[:, None]).sum(dim=(1, 2))[whole] / mass[whole]
    counts = torch.histc(centre_x, bins=4, min=0.0, max=64.0)
    assert float(counts.min()) > 0.05 * len(centre_x)
    assert float(centre_y.std()) > 6.0
    assert float(centre_x.mean()) == pytest.approx(32.0, abs=2.5)
    side = mass[whole].sqrt()
    assert float(side.quantile(0.95)) > 1.8 * float(side.quantile(0.2))


def test_resampling_is_antialiased() -> None:
    checks = (torch.arange(512)[:, None] + torch.arange(512)) % 2
    photo = checks.float().expand(3, -1, -1)
    for rotation in (0.0, 10.0):
        config = ViewConfig(window=(0.8, 1.0), rotation=rotation)
        views = random_views(photo, 8, 64, config, seeded())
        assert float((views - 0.5).abs().max()) < 0.05


@pytest.mark.parametrize(("height", "width"), [(70, 70), (64, 300), (90, 65)])
def test_small_photos_are_reflected_never_black(height: int, width: int) -> None:
    photo = 0.5 + 0.5 * torch.rand(3, height, width, generator=seeded(1))
    config = ViewConfig(max_upscale=1.0, rotation=10.0)
    views = random_views(photo, 30, 128, config, seeded())
    assert views.shape == (30, 3, 128, 128)
    assert float(views.min()) > 0.35  # bicubic undershoot at most


def test_reflection_mirrors_at_the_border() -> None:
    photo = torch.rand(3, 128, 64, generator=seeded(1))
    config = ViewConfig(max_upscale=1.0, window=(2.0, 2.0), **PLAIN)
    view = random_view(photo, 128, config, seeded(4))
    mirrored = torch.cat([photo.flip(-1), photo, photo.flip(-1)], dim=-1)  # (3, 128, 192)
    assert any(torch.equal(view, mirrored[..., left : left + 128]) for left in range(65))


def test_views_are_never_enlarged_beyond_the_limit() -> None:
    config = ViewConfig(window=(0.1, 1.0), max_upscale=1.25, **PLAIN)
    for view in random_views(coordinates(200, 200), 20, 128, config, seeded()):
        matrix, _, _ = fitted(view, 200, 200)
        assert float(matrix[0, 0]) >= 1.0 / 1.25 - 0.01


def test_same_generator_state_gives_the_same_and_global_state_stays() -> None:
    photo = torch.rand(3, 150, 180, generator=seeded())
    config = ViewConfig(brightness=(0.8, 1.2), gamma=(0.8, 1.2), saturation=(0.5, 1.5))
    before = torch.get_rng_state()
    first = random_views(photo, 4, 64, config, seeded(9))
    assert torch.equal(first, random_views(photo, 4, 64, config, seeded(9)))
    assert not torch.equal(first, random_views(photo, 4, 64, config, seeded(8)))
    assert torch.equal(before, torch.get_rng_state())
    assert first.shape == (4, 3, 64, 64)
    assert float(first.min()) >= 0.0 and float(first.max()) <= 1.0


def test_a_view_takes_as_many_draws_whatever_the_settings() -> None:
    photo = torch.rand(3, 150, 180, generator=seeded())
    one, other = seeded(3), seeded(3)
    random_views(photo, 3, 48, ViewConfig(), one)
    random_views(photo, 3, 48, ViewConfig(gamma=(0.5, 2.0), **PLAIN), other)
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"brightness": (0.8, 0.8)}, (0.48, 0.32, 0.16)),
        ({"brightness": (3.0, 3.0)}, (1.0, 1.0, 0.6)),
        ({"gamma": (2.0, 2.0)}, (0.36, 0.16, 0.04)),
        ({"saturation": (0.0, 0.0)}, (0.437, 0.437, 0.437)),
        ({}, (0.6, 0.4, 0.2)),
    ],
)
def test_colour_options(settings: dict, expected: tuple[float, float, float]) -> None:
    photo = torch.tensor([0.6, 0.4, 0.2])[:, None, None].expand(3, 80, 80)
    view = random_view(photo, 64, ViewConfig(**settings), seeded())
    assert view.mean(dim=(1, 2)).tolist() == pytest.approx(expected, abs=2e-3)
    assert float(view.std(dim=(1, 2)).max()) < 1e-4


def test_settings_survive_json() -> None:
    config = ViewConfig(window=(0.3, 1.2), rotation=8.0, gamma=(0.9, 1.1))
    assert ViewConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "values",
    [
        {"zoom": 2},
        {"window": [1.0, 0.5]},
        {"window": [0.0, 0.5]},
        {"window": 1.0},
        {"flip_probability": 2},
        {"rotation": -5},
        {"gamma": [0.0, 1.0]},
        {"max_upscale": "much"},
        [1, 2],
    ],
)
def test_senseless_settings_are_refused(values: dict) -> None:
    with pytest.raises(PFStorerError):
        ViewConfig.from_dict(values)


def test_photo_too_small_is_refused_with_both_sizes() -> None:
    with pytest.raises(PFStorerError, match=r"200 x 63 px.*views of 128 px.*at least 64 px"):
        random_view(torch.zeros(3, 63, 200), 128, ViewConfig(), seeded())
    assert random_view(torch.zeros(3, 64, 200), 128, ViewConfig(), seeded()).shape == (3, 128, 128)


@pytest.mark.parametrize(
    "photo",
    [
        torch.zeros(1, 3, 64, 64),
        torch.zeros(4, 64, 64),
        torch.zeros(3, 64, 64, dtype=torch.uint8),
        torch.zeros(3, 0, 64),
    ],
)
def test_wrong_photos_are_refused(photo: torch.Tensor) -> None:
    with pytest.raises(PFStorerError):
        random_view(photo, 64, ViewConfig(), seeded())


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(PFStorerError, match="side of a view is 0"):
        random_view(torch.zeros(3, 64, 64), 0, ViewConfig(), seeded())
