"""Drives ComfyUI's real frontend in a browser."""

import json
from pathlib import Path
from typing import Any

from comfyui_client import PACK
from playwright.sync_api import Page

START_MS = 120_000
IMAGES_SHOWN = """type => {
    const nodes = app.graph._nodes.filter(n => n.type === type);
    const shown = image => image.complete && image.naturalWidth > 0;
    return nodes.length > 0 && nodes.every(n => n.imgs?.length > 0 && n.imgs.every(shown));
}"""


class Frontend:
    """ComfyUI's page in the browser.

    Args:
        page: a fresh page.
        url: the server's address.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        page.wait_for_function(
            "id => window.app?.vueAppReady && window.LiteGraph?.registered_node_types[id]",
            arg="PFStorerLoadBaseRestorer",
            timeout=START_MS,
        )

    def open_template(self, name: str) -> None:
        """Opens one of this plugin's templates through the dialog, as a user does."""
        self.page.evaluate("app.graph.clear()")
        self.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(PACK, exact=True).first.click()
        dialog.get_by_test_id(f"template-workflow-{name}").click()
        self.page.wait_for_function("app.graph._nodes.length > 0")
        dialog.wait_for(state="hidden")

    def load_workflow(self, workflow: dict[str, Any]) -> None:
        """Loads a workflow in UI format."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def missing_nodes(self) -> list[str]:
        """Returns the types of the nodes that the frontend does not know."""
        types: list[str] = self.page.evaluate(
            "app.graph._nodes.map(n => n.type).filter(t => !LiteGraph.registered_node_types[t])"
        )
        return types

    def run(self, timeout: float = 300) -> None:
        """Presses the run button and waits until the workflow has succeeded.

        Args:
            timeout: seconds.

        Raises:
            AssertionError: it was refused, or a node failed.
        """
        self.page.evaluate(
            """() => {
                window.pfstorerRun = null;
                for (const end of ["execution_success", "execution_error", "execution_interrupted"])
                    app.api.addEventListener(
                        end, e => window.pfstorerRun = {end, detail: e.detail}, {once: true});
            }"""
        )
        self.page.get_by_test_id("queue-button").click()
        self.page.wait_for_function(
            "window.pfstorerRun || Object.keys(app.lastNodeErrors ?? {}).length > 0",
            timeout=timeout * 1000,
        )
        refused = self.page.evaluate("app.lastNodeErrors")
        assert not refused, json.dumps(refused)
        run = self.page.evaluate("window.pfstorerRun")
        assert run["end"] == "execution_success", json.dumps(run)

    def wait_for_images(self, node_type: str = "SaveImage", timeout: float = 60) -> None:
        """Waits until all nodes of one type show their pictures, loaded completely.

        Args:
            node_type: the nodes' type.
            timeout: seconds.
        """
        self.page.wait_for_function(IMAGES_SHOWN, arg=node_type, timeout=timeout * 1000)

    def screenshot(self, path: Path) -> None:
        """Saves a picture of the page with the whole graph in view."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1000)  # the view glides to its place
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)
