"""Weights of a small restorer, and the restorer that they make."""

import pytest
from golden_weights import fill
from small_restorers import SITES, TINY, Weights

from pfstorer_core.restorers.base import BaseRestorer


@pytest.fixture(scope="session")
def filled() -> Weights:
    untrained = BaseRestorer.initialise(SITES, TINY, hidden=32)
    return fill({key: value.shape for key, value in sorted(untrained.weights().items())})


@pytest.fixture
def weights(filled: Weights) -> Weights:
    """Deterministic weights of a small restorer, in alphabetical order."""
    return {key: value.clone() for key, value in filled.items()}


@pytest.fixture
def restorer(weights: Weights) -> BaseRestorer:
    return BaseRestorer.from_state_dict(weights)
