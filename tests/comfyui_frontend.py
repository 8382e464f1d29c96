"""Drives ComfyUI's real frontend in a browser."""

import json
from pathlib import Path
from typing import Any

from comfyui_server import PACK
from playwright.sync_api import Page

START_MS = 120_000
# The first workflow, which replaces what is in the graph, is there, and selections are noticed;
# which of them comes last depends on the frontend's version.
READY = """type =>
    window.app?.vueAppReady && window.LiteGraph?.registered_node_types[type]
    && app.extensionManager?.workflow?.activeWorkflow && !!app.canvas?.onSelectionChange"""
ACTIVE_WORKFLOW = "app.extensionManager.workflow.activeWorkflow?.path"

IMAGES_SHOWN = """type => {
    const nodes = app.graph._nodes.filter(n => n.type === type);
    const shown = image => image.complete && image.naturalWidth > 0;
    return nodes.length > 0 && nodes.every(n => n.imgs?.length > 0 && n.imgs.every(shown));
}"""
# Keeps what a node shows while it runs; the frontend drops the preview afterwards.
WATCH = """type => {
    const node = app.graph._nodes.find(n => n.type === type);
    const seen = window.pfstorerSeen = {preview: null, texts: []};
    setInterval(() => {
        const [url] = app.nodePreviewImages[node.id] ?? [];
        const image = node.imgs?.[0];
        if (url && image?.src === url && image.complete && image.naturalWidth > 0)
            seen.preview = [image.naturalWidth, image.naturalHeight];
        const text = node.widgets.find(w => w.name === "$$node-text-preview")?.value;
        if (text && text !== seen.texts.at(-1)) seen.texts.push(text);
    }, 50);
}"""
SHOWN_TEXT = """title => {
    const node = app.graph._nodes.find(n => n.title === title);
    const names = ["$$node-text-preview", "preview_text"];
    return node.widgets.find(w => names.includes(w.name) && w.value)?.value ?? "";
}"""
SET_WIDGETS = """([type, title, values]) => {
    const nodes = app.graph._nodes.filter(n => n.type === type && n.title === (title ?? n.title));
    for (const node of nodes)
        for (const [name, value] of Object.entries(values))
            node.widgets.find(w => w.name === name).value = value;
    return nodes.length;
}"""

# The place of a widget on the canvas, in pixels of the page.
PLACE_OF_WIDGET = """([title, name]) => {
    const node = app.graph._nodes.find(n => n.title === title);
    const widget = node.widgets.find(w => w.name === name);
    const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
    const [x, y] = app.canvas.ds.convertOffsetToCanvas(at);
    const frame = app.canvasEl.getBoundingClientRect();
    return [x + frame.left, y + frame.top];
}"""
# Shows a node at its own size.
SHOW_NODE = """title => {
    const node = app.graph._nodes.find(n => n.title === title);
    const {ds} = app.canvas;
    ds.scale = 1;
    ds.offset = [200 - node.pos[0], 140 - node.pos[1]];
    app.canvas.setDirty(true, true);
}"""
PLACE_OF_NODE = """title => {
    const node = app.graph._nodes.find(n => n.title === title);
    const {ds} = app.canvas;
    const frame = app.canvasEl.getBoundingClientRect();
    const [x, y] = ds.convertOffsetToCanvas([node.pos[0], node.pos[1] - 30]);
    const [width, height] = [node.size[0] * ds.scale, (node.size[1] + 30) * ds.scale];
    return {x: x + frame.left, y: y + frame.top, width, height};
}"""
SET_PICTURE = """async ([bytes, name, title]) => {
    const body = new FormData();
    body.append("image", new File([Uint8Array.from(bytes)], name, {type: "image/png"}));
    const answer = await app.api.fetchApi("/upload/image", {method: "POST", body});
    const stored = (await answer.json()).name;
    const node = app.graph._nodes.find(n => n.title === title);
    const widget = node.widgets.find(w => w.name === "image");
    widget.value = stored;
    widget.callback?.(stored);
}"""
# As the node library does; Load Image gives the photos, Save Image takes the result.
PLACE_BLUEPRINT = """async ([name, values]) => {
    const get = async path => (await app.api.fetchApi(path)).json();
    const listed = Object.entries(await get("/global_subgraphs"));
    const [id] = listed.find(([, entry]) => entry.name === name);
    const blueprint = JSON.parse((await get(`/global_subgraphs/${id}`)).data);
    app.graph.clear();
    const items = {nodes: blueprint.nodes, subgraphs: blueprint.definitions.subgraphs};
    const {nodes} = app.canvas._deserializeItems(items, {position: [400, 100]});
    const [placed] = nodes.values();
    for (const [type, chosen] of Object.entries(values))
        for (const [key, value] of Object.entries(chosen)) {
            const inner = placed.subgraph.nodes.find(n => n.type === type).widgets;
            const named = widget => widget.name === key;
            (placed.widgets.find(named) ?? inner.find(named)).value = value;
        }
    const add = (type, x, title) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, 100];
        node.title = title;
        app.graph.add(node);
        return node;
    };
    const sources = {
        image: add("LoadImage", 0, "The photo to restore"),
        photos: add("LoadImage", 0, "Photo 1 of the person"),
    };
    sources.photos.pos[1] = 500;
    placed.inputs.forEach((input, k) => sources[input.name]?.connect(0, placed, k));
    if (!placed.inputs.some(input => input.name === "photos")) app.graph.remove(sources.photos);
    placed.connect(0, add("SaveImage", 900, "Result"), 0);
    return placed.inputs.map(input => input.name);
}"""

DROP = """async ([bytes, name]) => {
    const type = `image/${name.split(".").at(-1)}`;
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(bytes)], name, {type}));
    const at = {dataTransfer: files, bubbles: true, cancelable: true, clientX: 800, clientY: 700};
    app.canvasEl.dispatchEvent(new DragEvent("drop", at));
}"""
CONNECT = """([from, title, input]) => {
    const source = app.graph._nodes.find(n => n.type === from);
    const target = app.graph._nodes.find(n => n.title === title);
    source.connect(0, target, target.inputs.findIndex(i => i.name === input));
}"""

# The node alone on the canvas; returns a place on its title, in pixels of the canvas.
ONE_NODE = """async type => {
    // not where the last one was: two quick clicks in one place rename a node and do not select it
    const lower = app.graph._nodes[0]?.pos[1] === 200;
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    node.pos = [300, lower ? 260 : 200];
    app.graph.add(node);
    app.canvas.ds.reset();
    app.canvas.setDirty(true, true);
    while (!app.canvas.visible_nodes?.includes(node)) await new Promise(requestAnimationFrame);
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 15]);
    return {x, y};
}"""
HELP_SHOWN = """title => {
    const page = document.querySelector(".node-help-content .markdown-content");
    if (page?.querySelector("h1")?.textContent !== title) return false;
    return [...page.querySelectorAll("img")].every(image => image.complete);
}"""
HELP = """() => {
    const page = document.querySelector(".node-help-content .markdown-content");
    const images = [...page.querySelectorAll("img")];
    return {
        headings: [...page.querySelectorAll("h2")].map(heading => heading.textContent),
        images: images.length,
        broken: images.filter(image => !image.naturalWidth).map(image => image.src),
        marks: page.textContent.match(/.{0,20}\\*\\*.{0,20}/g) ?? [],
    };
}"""
LABELS = """() => {
    const [node] = app.graph._nodes;
    const inputs = {};
    for (const input of node.inputs) inputs[input.name] = input.label ?? input.localized_name;
    for (const widget of node.widgets)
        if (widget.serialize !== false) inputs[widget.name] = widget.label ?? widget.name;
    return {title: node.title, inputs};
}"""

ALONE = """type => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    node.pos = [300, 200];
    app.graph.add(node);
    app.canvas.ds.reset();
    app.canvas.setDirty(true, true);
}"""
DRAWN = """() => {
    const [node] = app.graph._nodes;
    return LiteGraph.vueNodesMode
        ? !!document.querySelector(`[data-node-id="${node.id}"]`)
        : app.canvas.visible_nodes?.includes(node);
}"""
# What is seen of the only node's widgets. Vue draws them as elements, the canvas does not.
WIDGETS_SEEN = """() => {
    const [node] = app.graph._nodes;
    return LiteGraph.vueNodesMode
        ? document.querySelectorAll(`[data-node-id="${node.id}"] .lg-node-widget`).length
        : (node.widgets ?? []).filter(w => node.isWidgetVisible(w)).length;
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
        page.wait_for_function(READY, arg="PFStorerLoadBaseRestorer", timeout=START_MS)

    def open_template(self, name: str) -> None:
        """Opens one of this plugin's templates through the dialog, as a user does."""
        former = self.page.evaluate(ACTIVE_WORKFLOW)
        self.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(PACK, exact=True).first.click()
        dialog.get_by_test_id(f"template-workflow-{name}").click()
        # its nodes are there before it is the active workflow, which an app's mode belongs to
        self.page.wait_for_function(f"former => {ACTIVE_WORKFLOW} !== former", arg=former)
        dialog.wait_for(state="hidden")

    def place_blueprint(self, name: str, values: dict[str, dict[str, Any]]) -> list[str]:
        """Puts a blueprint on an empty canvas, with nodes for its pictures around it.

        Args:
            name: of the blueprint.
            values: of the widgets inside it, by the node's type.

        Returns:
            The names of its inputs.
        """
        inputs: list[str] = self.page.evaluate(PLACE_BLUEPRINT, [name, values])
        return inputs

    def open_as_app(self) -> None:
        """Turns the workflow into an app and waits until it can be run."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
        self.page.get_by_test_id("linear-run-button").wait_for()

    def missing_nodes(self) -> list[str]:
        """Returns the types of the nodes that the frontend does not know."""
        types: list[str] = self.page.evaluate(
            "app.graph._nodes.map(n => n.type).filter(t => !LiteGraph.registered_node_types[t])"
        )
        return types

    def titles(self, node_type: str) -> list[str]:
        """Returns the titles of all nodes of a type."""
        titles: list[str] = self.page.evaluate(
            "type => app.graph._nodes.filter(n => n.type === type).map(n => n.title)", node_type
        )
        return titles

    def set_widgets(self, node_type: str, title: str | None = None, **values: Any) -> None:
        """Sets widgets of all nodes of a type, or of a title, of which there must be one."""
        assert self.page.evaluate(SET_WIDGETS, [node_type, title, values]) > 0

    def drop_picture(self, path: Path) -> None:
        """Drops a picture file on the page and waits for the Load Image node that shows it."""
        self.page.evaluate(DROP, [list(path.read_bytes()), path.name])
        self.wait_for_images("LoadImage")

    def press_widget(self, title: str, name: str) -> None:
        """Clicks on a widget of a node on the canvas, as a user does."""
        self.page.mouse.click(*self.place_of_widget(title, name))

    def place_of_widget(self, title: str, name: str) -> tuple[float, float]:
        """Returns the middle of a widget on the canvas, in pixels of the page."""
        x, y = self.page.evaluate(PLACE_OF_WIDGET, [title, name])
        return x, y

    def show_node(self, title: str) -> dict[str, float]:
        """Shows a node on the canvas at its own size.

        Returns:
            Its place, title included, in pixels of the page: x, y, width, height.
        """
        self.page.evaluate(SHOW_NODE, title)
        self.page.wait_for_timeout(500)  # it is drawn anew
        return self.place_of_node(title)

    def place_of_node(self, title: str) -> dict[str, float]:
        """Returns the place of a node on the canvas; see `show_node`."""
        place: dict[str, float] = self.page.evaluate(PLACE_OF_NODE, title)
        return place

    def give_picture(self, title: str, path: Path) -> None:
        """Uploads a picture file and chooses it in the Load Image node of a title."""
        self.page.evaluate(SET_PICTURE, [list(path.read_bytes()), path.name, title])

    def connect(self, node_type: str, title: str, input_name: str) -> None:
        """Connects the first output of the first node of a type with an input of a titled node."""
        self.page.evaluate(CONNECT, [node_type, title, input_name])

    def watch(self, node_type: str) -> None:
        """Notes from now on what the first node of a type shows while it runs; see `seen`."""
        self.page.evaluate(WATCH, node_type)

    def shown_text(self, title: str) -> str:
        """Returns the line of text that the node of a title shows, or that it previews."""
        text: str = self.page.evaluate(SHOWN_TEXT, title)
        return text

    def seen(self) -> tuple[list[int] | None, list[str]]:
        """Returns (width, height) of the last preview that was shown, and all lines of text."""
        seen = self.page.evaluate("window.pfstorerSeen")
        return seen["preview"], seen["texts"]

    def wait_for_preview(self, timeout: float = 300) -> None:
        """Waits until the watched node shows a live preview, or the run has ended without one."""
        self.page.wait_for_function(
            "window.pfstorerSeen.preview || window.pfstorerRun", timeout=timeout * 1000
        )

    def run(self, timeout: float = 300) -> None:
        """Presses the run button and waits until the workflow has succeeded.

        Args:
            timeout: seconds.

        Raises:
            AssertionError: it was refused, or a node failed.
        """
        self.start()
        self.wait(timeout)

    def start(self, app: bool = False) -> None:
        """Presses the run button of the graph, or of the app."""
        self.page.evaluate(
            """() => {
                window.pfstorerRun = null;
                for (const end of ["execution_success", "execution_error", "execution_interrupted"])
                    app.api.addEventListener(
                        end, e => window.pfstorerRun = {end, detail: e.detail}, {once: true});
            }"""
        )
        form = self.page.get_by_test_id("linear-run-button")
        button = form.get_by_role("button", name="Run", exact=True)
        (button if app else self.page.get_by_test_id("queue-button")).click()

    def wait(self, timeout: float = 300) -> None:
        """Waits until the workflow that was started has succeeded; see `run`."""
        self.page.wait_for_function(
            "window.pfstorerRun || Object.keys(app.lastNodeErrors ?? {}).length > 0",
            timeout=timeout * 1000,
        )
        refused = self.page.evaluate("app.lastNodeErrors")
        assert not refused, json.dumps(refused)
        run = self.page.evaluate("window.pfstorerRun")
        assert run["end"] == "execution_success", json.dumps(run)

    def failed(self, timeout: float = 300) -> dict[str, Any]:
        """Presses the run button and returns what ComfyUI says of the node that failed."""
        self.start()
        self.page.wait_for_function("window.pfstorerRun", timeout=timeout * 1000)
        run = self.page.evaluate("window.pfstorerRun")
        assert run["end"] == "execution_error", json.dumps(run)
        detail: dict[str, Any] = run["detail"]
        return detail

    def wait_for_images(self, node_type: str = "SaveImage", timeout: float = 60) -> None:
        """Waits until all nodes of one type show their pictures, loaded completely.

        Args:
            node_type: the nodes' type.
            timeout: seconds.
        """
        self.page.wait_for_function(IMAGES_SHOWN, arg=node_type, timeout=timeout * 1000)

    def open_help(self, node_type: str, title: str) -> dict[str, Any]:
        """Puts a node alone on the canvas and opens its help, as a user does.

        Args:
            node_type: the node's type.
            title: of its help page.

        Returns:
            The page's `headings`, its number of `images`, the addresses of `broken` ones, and
            texts around `marks` that are shown instead of taken as bold.
        """
        title_bar = self.page.evaluate(ONE_NODE, node_type)
        self.page.locator("#graph-canvas").click(position=title_bar)
        self.page.get_by_test_id("info-button").click()
        self.page.wait_for_function(HELP_SHOWN, arg=title)
        found: dict[str, Any] = self.page.evaluate(HELP)
        return found

    def labels(self) -> dict[str, Any]:
        """Returns the `title` of the only node and the labels of its `inputs` by name."""
        shown: dict[str, Any] = self.page.evaluate(LABELS)
        return shown

    def load(self, workflow: dict[str, Any]) -> None:
        """Opens a workflow, as from a file."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def prompt(self) -> dict[str, Any]:
        """Returns what the workflow is for the API."""
        prompt: dict[str, Any] = self.page.evaluate(
            "async () => (await app.graphToPrompt()).output"
        )
        return prompt

    def put_alone(self, node_type: str) -> None:
        """Clears the graph, puts a node on it and waits until it is drawn."""
        self.page.evaluate(ALONE, node_type)
        self.page.wait_for_function(DRAWN, timeout=30_000)

    def widgets_seen(self) -> int:
        """Returns how many widgets of the only node are in view."""
        seen: int = self.page.evaluate(WIDGETS_SEEN)
        return seen

    def screenshot(self, path: Path) -> None:
        """Saves a picture of the page with the whole graph in view."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1000)  # the view glides to its place
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)
