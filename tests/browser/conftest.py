"""One headless Chromium for all tests, and a fresh page of ComfyUI's real frontend for each."""

from collections.abc import Iterator

import pytest
from comfyui_frontend import Frontend
from comfyui_queue import ComfyUI
from comfyui_server import Server
from playwright.sync_api import Browser, sync_playwright
from setup_host import NO_CHROMIUM, find_chromium

# As root there is no sandbox; the others keep Chromium from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Otherwise the first start opens a dialog and the next one the last workflow.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.RightSidePanel.IsOpen": False,
}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, started once."""
    chromium = find_chromium()
    if chromium is None:
        pytest.fail(NO_CHROMIUM)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


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
    chosen = {"Comfy.Locale": locale, "Comfy.VueNodes.Enabled": vue_nodes}
    ComfyUI(server.url).post("/api/settings", {**SETTINGS, **chosen})
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    opened = Frontend(page, server.url)
    yield opened
    page.close()
    assert not opened.errors, opened.errors
