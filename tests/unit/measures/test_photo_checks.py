import io
from collections.abc import Callable

import pytest
import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import resize, to_pil_image

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set, render, sample_identities, sample_views
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.photo_checks import (
    COPY,
    MOST_BLUR,
    blur_width,
    check_photos,
    copy_correlations,
)
from pfstorer_core.pictures.views import ViewConfig

SIZE = 128
PERSON = 1_000_000


@pytest.fixture(scope="module")
def photos() -> list[Tensor]:
    """Five sharp, different photos of one person."""
    return list(portrait_set(PERSON, 5, 0, SIZE))


@pytest.fixture(scope="module")
def persons() -> list[list[Tensor]]:
    """Four photos each of twelve persons."""
    return [list(portrait_set(PERSON + k, 4, k, SIZE)) for k in range(1, 13)]


def blurred(photo: Tensor, sigma: float) -> Tensor:
    side = 2 * round(3 * sigma) + 1
    return gaussian_blur2d(photo[None], (side, side), (sigma, sigma), "replicate")[0]


def moved(photo: Tensor, length: int) -> Tensor:
    """The photo with motion blur along x."""
    return torch.stack([photo.roll(shift, -1) for shift in range(length)]).mean(0)


def recompressed(photo: Tensor, quality: int = 30) -> Tensor:
    with io.BytesIO() as file:
        to_pil_image(photo).save(file, "JPEG", quality=quality)
        data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    return decode_image(data, ImageReadMode.RGB).float() / 255


def noisy(photo: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    return (photo + sigma * noise).clamp(0, 1)


def larger(photo: Tensor, width: int, height: int) -> Tensor:
    return resize(photo, [height, width], antialias=True).clamp(0, 1)


class TestErrors:
    def test_no_photo(self) -> None:
        with pytest.raises(PFStorerError, match="no photo to train on"):
            check_photos([], SIZE)

    def test_a_small_photo_is_named(self, photos) -> None:
        small = photos[1][:, :60, :100]
        with pytest.raises(PFStorerError, match=r"Photo 2 has 100 x 60 px.*at least 64 px"):
            check_photos([photos[0], small], SIZE)
        check_photos([photos[0], small], SIZE, views=ViewConfig(min_photo=0.4))

    @pytest.mark.parametrize(
        ("value", "found"), [(float("nan"), "not finite"), (255.0, "to 255"), (-1.5, "from -1.5")]
    )
    def test_values_outside_the_range(self, photos, value: float, found: str) -> None:
        bad = photos[2].clone()
        bad[1, 5, 7] = value
        with pytest.raises(PFStorerError, match=rf"Photo 3 has values.*{found}"):
            check_photos([*photos[:2], bad], SIZE)

    def test_one_colour(self, photos) -> None:
        flat = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(3, SIZE, SIZE)
        with pytest.raises(PFStorerError, match="Photo 2 is of one colour"):
            check_photos([photos[0], flat], SIZE)

    @pytest.mark.parametrize("photo", [torch.zeros(128, 128, 3), torch.zeros(3, 128, 128).byte()])
    def test_no_picture(self, photo: Tensor) -> None:
        with pytest.raises(PFStorerError, match=r"Photo 1 has the shape .* give \(3, H, W\)"):
            check_photos([photo], SIZE)


class TestWarnings:
    def test_good_photos_give_none(self, photos, persons) -> None:
        assert check_photos(photos, SIZE, find_faces=lambda photo: 1) == []
        assert [check_photos(person, SIZE) for person in persons] == [[]] * len(persons)

    def test_the_photos_stay_as_they_are(self, photos) -> None:
        given = [photo.clone() for photo in photos]
        check_photos(given, SIZE)
        assert all(torch.equal(a, b) for a, b in zip(given, photos, strict=True))

    def test_too_few(self, photos) -> None:
        assert "There is only 1 photo; 3 to 10" in check_photos(photos[:1], SIZE)[0]
        assert "There are only 2 photos" in check_photos(photos[:2], SIZE)[0]
        assert check_photos(photos[:3], SIZE) == []

    def test_too_many(self) -> None:
        crowd = list(portrait_set(PERSON, 21, 3, 64))
        assert "There are 21 photos; 3 to 10" in check_photos(crowd, 64)[0]
        assert not any("There are" in warning for warning in check_photos(crowd[:20], 64))

    def test_blur_is_named(self, photos) -> None:
        (warning,) = check_photos([*photos[:3], blurred(photos[3], 3.0)], SIZE)
        assert warning.startswith("Photo 4 is blurred")

    def test_copies_are_named_once(self, photos) -> None:
        copies = [*photos[:3], recompressed(photos[1]), 0.7 * photos[1]]
        first, second = check_photos(copies, SIZE)
        assert first.startswith("Photo 4 is nearly the same picture as photo 2")
        assert second.startswith("Photo 5 is nearly the same picture as photo 2")

    def test_faces(self, photos) -> None:
        counts = iter([1, 0, 3])
        none, several = check_photos(photos[:3], SIZE, find_faces=lambda photo: next(counts))
        assert none.startswith("No face was found in photo 2")
        assert several.startswith("3 faces were found in photo 3")


class TestBlurWidth:
    def test_it_measures_the_blur(self, photos) -> None:
        for sigma in (2.0, 4.0, 6.0):
            widths = torch.tensor([blur_width(blurred(photo, sigma), SIZE) for photo in photos])
            assert abs(float(widths.median()) / sigma - 1) < 0.15

    def test_it_is_in_view_pixels(self) -> None:
        photo = portrait_set(PERSON, 1, 0, 512)[0]
        soft = blurred(photo, 4.0)
        assert blur_width(soft, 512) > 3.5
        assert blur_width(soft, 128) < MOST_BLUR

    def test_sharp_photos_pass(self, persons) -> None:
        changes: list[Callable[[Tensor], Tensor]] = [
            lambda photo: photo,
            lambda photo: 0.25 * photo,
            lambda photo: recompressed(photo, 50),
            lambda photo: noisy(photo, 0.06),
        ]
        for person in persons:
            assert all(blur_width(change(person[0]), SIZE) < MOST_BLUR for change in changes)

    def test_blurred_photos_do_not(self, persons) -> None:
        generator = torch.Generator().manual_seed(0)
        changes: list[Callable[[Tensor], Tensor]] = [
            lambda photo: blurred(photo, 2.0),
            lambda photo: recompressed(blurred(photo, 3.0), 70),
            lambda photo: larger(larger(photo, 32, 32), SIZE, SIZE),
            lambda photo: degrade(photo[None], PRESETS["medium"], generator)[0],
            lambda photo: moved(photo, 9),
        ]
        hits = torch.tensor(
            [[blur_width(change(p[0]), SIZE) > MOST_BLUR for change in changes] for p in persons]
        )
        assert hits[:, :4].all()
        assert hits[:, 4].float().mean() > 0.8


class TestCopies:
    @pytest.mark.parametrize(
        "copy",
        [
            recompressed,
            lambda photo: larger(photo, 64, 64),
            lambda photo: larger(photo, 200, 200),
            lambda photo: photo[:, 6:121, :],
            lambda photo: photo[:, 13:, :115],
            lambda photo: photo[:, 3:118, 14:110],
            lambda photo: (1.4 * photo).clamp(0, 1),
            lambda photo: 0.5 * photo + 0.2,
            lambda photo: recompressed(0.8 * larger(photo[:, 10:122, 4:116], 90, 90), 60),
        ],
        ids=["jpeg", "half", "larger", "strip", "corner", "inside", "bright", "pale", "all"],
    )
    def test_copies_are_found(self, persons, copy: Callable[[Tensor], Tensor]) -> None:
        for photo, other, *_ in persons[:6]:
            found = copy_correlations([photo, other, copy(photo)])
            assert found[0, 2] >= COPY
            assert found[0, 1] < COPY
            assert torch.equal(found, found.T)

    def test_other_poses_before_the_same_wall_are_none(self) -> None:
        views = sample_views(4, torch.Generator().manual_seed(500))
        for name in ("back_a", "back_b", "back_angle", "back_wave", "back_freq", "cloth", "collar"):
            views.values[name] = views.values[name][:1].expand_as(views.values[name]).clone()
        photos = list(render(sample_identities([PERSON] * 4), views, SIZE))
        found = copy_correlations(photos)
        assert found.fill_diagonal_(-1.0).max() < COPY

    def test_photos_of_any_shape_can_be_compared(self, photos) -> None:
        wide, tall = photos[0][:, :64].repeat(1, 1, 4), photos[1][:, :, :64].repeat(1, 4, 1)
        found = copy_correlations([wide, tall, larger(wide, 300, 40)])
        assert found[0, 2] >= COPY > found[0, 1]
        assert found.abs().max() <= 1 + 1e-4
