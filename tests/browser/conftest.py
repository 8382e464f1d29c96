"""One headless Chromium for all tests, and a fresh page of ComfyUI's real frontend for each."""

from collections.abc import Iterator

import pytest
from comfyui_browser import chromium, open_frontend
from comfyui_frontend import Frontend
from comfyui_server import Server
from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, started once."""
    with chromium() as running:
        yield running


@pytest.fixture
def locale() -> str:
    """The language of the page; a test with a parameter of this name chooses another."""
    return "en"


@pytest.fixture
def vue_nodes() -> bool:
    """Whether nodes are drawn by Vue and not on the canvas; a test's parameter chooses."""
    return False


@pytest.fixture
def frontend(browser: Browser, server: Server, locale: str, vue_nodes: bool) -> Iterator[Frontend]:
    """A fresh page with ComfyUI ready; fails if the page raised an error meanwhile."""
    with open_frontend(browser, server.url, locale, vue_nodes=vue_nodes) as opened:
        yield opened
    assert not opened.errors, opened.errors
