import numpy as np
import pytest
import torch
from PIL import Image
from sample_pictures import picture

from pfstorer_core.pictures.resizing import resize_bicubic


@pytest.mark.parametrize("scale", [(300, 200), (31, 50), (128, 40)])
def test_bicubic_is_that_of_pillow(scale: tuple[int, int]) -> None:
    image = picture(100, 90)
    expected = Image.fromarray(image[1].numpy()).resize(scale[::-1], Image.Resampling.BICUBIC)
    got = resize_bicubic(image[None], scale)[0, 1]
    assert torch.allclose(got, torch.from_numpy(np.array(expected)).clamp(0, 1), atol=1e-5)
