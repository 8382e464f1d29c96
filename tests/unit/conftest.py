"""Fixtures of the tests that need no ComfyUI."""

import pytest
import torch
from golden_weights import Goldens


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    """The golden vectors, at PFSTORER_GOLDENS or in tests/goldens."""
    return Goldens.find()


@pytest.fixture
def generator() -> torch.Generator:
    """A random generator of a fixed seed."""
    return torch.Generator().manual_seed(0)
