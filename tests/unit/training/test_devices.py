import os

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.devices import check_precision, make_accelerator, own_accelerate_state


class TestDevice:
    def test_it_is_the_given_one_and_not_the_first_that_accelerate_knows(self):
        device = torch.device("meta")
        with own_accelerate_state():
            assert make_accelerator(device, mixed_precision="no").device == device
        assert "ACCELERATE_TORCH_DEVICE" not in os.environ
        with own_accelerate_state():
            assert make_accelerator(torch.device("cpu"), mixed_precision="no").device.type == "cpu"

    def test_a_precision_that_it_does_not_have_is_said_at_once(self):
        check_precision("no", torch.device("meta"))
        with pytest.raises(PFStorerError, match=r"\(meta\) does not train in .* 'fp16'"):
            check_precision("fp16", torch.device("meta"))
