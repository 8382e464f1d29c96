"""A headless Chromium, and fresh pages of ComfyUI's real frontend in it."""

from collections.abc import Iterator
from contextlib import contextmanager

from comfyui_frontend import Frontend
from comfyui_queue import ComfyUI
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
# Without a GPU a dot that pulses while a workflow runs takes half a processor core.
STILL = "*, ::before, ::after { animation-iteration-count: 1 !important; }"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium for a block.

    Raises:
        RuntimeError: there is none on this machine.
    """
    found = find_chromium()
    if found is None:
        raise RuntimeError(NO_CHROMIUM)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield running
        running.close()


@contextmanager
def open_frontend(
    browser: Browser, url: str, locale: str = "en", *, vue_nodes: bool = False
) -> Iterator[Frontend]:
    """A fresh page with ComfyUI ready, of 1440 x 900 px, for a block.

    Args:
        browser: the browser.
        url: the server's address.
        locale: language of the page.
        vue_nodes: whether nodes are drawn by Vue and not on the canvas.
    """
    chosen = {"Comfy.Locale": locale, "Comfy.VueNodes.Enabled": vue_nodes}
    ComfyUI(url).post("/api/settings", {**SETTINGS, **chosen})
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    frontend = Frontend(page, url)
    page.add_style_tag(content=STILL)
    yield frontend
    page.close()
