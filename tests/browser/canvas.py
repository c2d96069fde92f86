"""ComfyUI's canvas in a browser, as a person has it before them, in the words of the tests."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import comfyui
import numpy as np
from PIL import Image
from talk import Host

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What the frontend keeps for itself and does not save.
VALUES = """() => app.graph.nodes.map(node => ({
    id: node.id, type: node.type, title: node.title, known: node.type in LiteGraph.registered_node_types,
    red: Boolean(node.has_errors), widgets: (node.widgets ?? []).map(w => [w.name, w.label ?? null, w.value])
}))"""


def find_browser() -> str | None:
    """Find a Chromium that is installed; CHROME_PATH comes first."""
    return os.environ.get("CHROME_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)


class Canvas:
    """A page with the frontend, in one renderer and one language."""

    def __init__(self, server: comfyui.Server, browser: Any, pictures: Path, *, vue: bool, language: str) -> None:
        self.vue, self.language, self.pictures = vue, language, pictures
        self.host = Host(server)
        self.settings = {
            "Comfy.VueNodes.Enabled": vue,
            "Comfy.Locale": language,
            "Comfy.TutorialCompleted": True,
            "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"],
            "Comfy.Workflow.Persist": False,
            "Comfy.Minimap.Visible": False,
        }
        self.host.post("/settings", self.settings)
        self.page = browser.new_page(viewport={"width": 1600, "height": 1000})
        self.page.set_default_timeout(90_000)
        self.complaints: list[str] = []
        self.opened = 0
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(server.url)
        self._wait_for_canvas()

    def _wait_for_canvas(self) -> None:
        self.page.wait_for_function(
            "() => window.app?.graph && window.LiteGraph?.registered_node_types.FlowcoreUpscale"
            " && document.querySelector('canvas')?.width > 0"
        )

    def _heard(self, message: Any) -> None:
        if message.type == "error" and ("flowcore" in message.text or comfyui.PACK_NAME in str(message.location)):
            self.complaints.append(message.text)

    def open(self, workflow: dict[str, Any]) -> None:
        """Open a workflow, in either format."""
        # Or Nodes 2.0 would show the results of another workflow's nodes of the same number.
        self.page.evaluate(
            """() => { app.canvas.setGraph(app.graph); app.nodeOutputs = {}; app.nodePreviewImages = {};
                window.openedBefore = app.extensionManager.workflow.activeWorkflow; }"""
        )
        if "nodes" in workflow:
            self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        else:
            self.opened += 1  # of one name, the frontend would take them for one workflow
            self.page.evaluate(
                """([workflow, name]) => { // all have this id, for which the frontend keeps values of earlier nodes
                    app.extensionManager._p._s.get('widgetValue')?.clearGraph('00000000-0000-0000-0000-000000000000');
                    return app.loadApiJson(workflow, name); }""",
                [workflow, f"story {self.opened}"],
            )
        # A run belongs to the workflow that is open then, which the frontend notices somewhat later.
        self.page.wait_for_function(
            "() => app.extensionManager.workflow.activeWorkflow"
            " && app.extensionManager.workflow.activeWorkflow !== window.openedBefore"
        )
        self.page.wait_for_timeout(100)
        self.fit()

    def reload(self, kind: str) -> None:
        """Load the page anew, as F5 does; it shows the workflow again that it had, with a node of a kind."""
        self.page.wait_for_timeout(800)  # the frontend saves drafts half a second after a change
        # Another page may have been opened in the other renderer since.
        self.host.post("/settings", self.settings | {"Comfy.Workflow.Persist": True})
        self.page.reload()
        self._wait_for_canvas()
        self.page.wait_for_function("kind => app.graph.nodes.some(n => n.type === kind)", arg=kind)
        self.page.wait_for_timeout(500)
        self.fit()

    def command(self, name: str) -> None:
        """Execute a command of the frontend, such as Comfy.Undo."""
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)
        self.page.wait_for_timeout(300)

    def undo_steps(self) -> int:
        """How many steps could be undone, once the frontend has noticed the last change."""
        self.page.wait_for_timeout(200)
        tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
        return self.page.evaluate(f"() => {tracker}.undoQueue.length")

    def fit(self) -> None:
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        before = None
        while before != (now := self.page.evaluate("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]")):
            before = now
            self.page.wait_for_timeout(400)  # it glides there

    def spread(self) -> None:
        """Put the nodes in a row: the frontend lays out the API format without room for what a run shows on nodes."""
        self.page.evaluate(
            """() => { let left = 0;
                for (const node of app.graph.nodes) {
                    node.pos = [left, 0]; left += Math.max(node.size[0], 300) + 80; } }"""
        )
        self.fit()

    def look_at(self, *kinds: str, scale: float = 1.0) -> None:
        """Bring the nodes of some kinds into view, at a scale."""
        self.page.evaluate(
            """([kinds, scale]) => {
                const nodes = app.graph.nodes.filter(n => kinds.includes(n.type)), ds = app.canvas.ds;
                const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1]));
                ds.scale = scale;
                ds.offset = [120 / scale - left, 160 / scale - top];
                app.canvas.setDirty(true, true);
            }""",
            [kinds, scale],
        )
        self.page.wait_for_timeout(400)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes on the canvas: id, type, title, whether they are known and red, widgets as (name, label, value)."""
        return self.page.evaluate(VALUES)

    def bounds(self, kind: str | None = None) -> tuple[float, float, float, float]:
        """Where all nodes, or those of a kind, lie on the page: left, top, right, bottom."""
        return tuple(
            self.page.evaluate(
                """kind => { const {scale, offset} = app.canvas.ds;
                    const boxes = app.graph.nodes.filter(n => !kind || n.type === kind).map(n => n.boundingRect);
                    const page = app.canvas.canvas.getBoundingClientRect();
                    const x = v => page.left + (v + offset[0]) * scale, y = v => page.top + (v + offset[1]) * scale;
                    return [x(Math.min(...boxes.map(b => b[0]))), y(Math.min(...boxes.map(b => b[1]))),
                        x(Math.max(...boxes.map(b => b[0] + b[2]))), y(Math.max(...boxes.map(b => b[1] + b[3])))]; }""",
                kind,
            )
        )

    def overlapping(self) -> list[list[str]]:
        """Pairs of nodes that lie over each other, by title, as they are drawn."""
        return self.page.evaluate(
            """() => { const {scale} = app.canvas.ds;
                const drawn = ({id}) => document.querySelector(`[data-node-id="${id}"]`);
                const boxOf = node => { const r = LiteGraph.vueNodesMode && drawn(node)?.getBoundingClientRect();
                    return r ? [r.x / scale, r.y / scale, r.width / scale, r.height / scale] : node.boundingRect };
                const boxes = app.graph.nodes.map(n => [n.title, ...boxOf(n)]), found = [];
                for (const [i, [a, x, y, w, h]] of boxes.entries()) for (const [b, u, v, s, t] of boxes.slice(i + 1))
                    if (x < u + s && u < x + w && y < v + t && v < y + h) found.push([a, b]);
                return found; }"""
        )

    def only(self, kind: str) -> dict[str, Any]:
        """The only node of a kind, as `nodes` has it."""
        (node,) = [node for node in self.nodes() if node["type"] == kind]
        return node

    def value(self, kind: str, *names: str) -> Any:
        """The value of a widget of the only node of a kind; of several, their values."""
        values = {name: value for name, _, value in self.only(kind)["widgets"]}
        return values[names[0]] if len(names) == 1 else [values[name] for name in names]

    def move(self, kind: str, widget: str, *values: Any) -> None:
        """Give a widget of the only node of a kind values, one after the other, as a person does who drags it."""
        self.page.evaluate(
            """([kind, name, values]) => { const node = app.graph.nodes.find(n => n.type === kind);
                const widget = node.widgets.find(w => w.name === name);
                for (widget.value of values) widget.callback?.(widget.value, app.canvas, node); }""",
            [kind, widget, values],
        )

    def drag(self, *places: tuple[float, float], steps: int = 5) -> None:
        """Move the mouse to the first place of the page, and from place to place with the button down."""
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=steps)
        self.page.mouse.up()

    def drop(self, picture: bytes, names: str, place: tuple[float, float], kind: str = "image/png") -> None:
        """Drop a file, PNG if no other kind, on a place of the page; of several names, as many."""
        self.page.evaluate(
            """async ([bytes, names, x, y, type]) => {
                const data = new DataTransfer(), at = document.elementFromPoint(x, y);
                for (const name of names.split(' '))
                    data.items.add(new File([new Uint8Array(bytes)], name, {type}));
                for (const kind of ['dragenter', 'dragover', 'drop']) {
                    at.dispatchEvent(new DragEvent(kind,
                        {bubbles: true, cancelable: true, dataTransfer: data, clientX: x, clientY: y}));
                    await new Promise(done => setTimeout(done, 100));
                } }""",
            [list(picture), names, *place, kind],
        )

    def drop_folder(self, folder: Path, place: tuple[float, float]) -> None:
        session = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": place[0], "y": place[1], "data": data}
            session.send("Input.dispatchDragEvent", event)
            self.page.wait_for_timeout(100)

    def close_up(self, *kinds: str) -> None:
        """Turn the nodes of some kinds into a subgraph, as its menu does."""
        self.page.evaluate(
            """async kinds => { app.canvas.deselectAll();
                for (const node of app.graph.nodes) if (kinds.includes(node.type)) app.canvas.select(node);
                await app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph'); }""",
            kinds,
        )
        self.page.wait_for_timeout(300)

    def enter(self) -> None:
        find = "app.graph.nodes.find(n => n.subgraph)"
        self.page.evaluate(f"() => {{ const node = {find}; app.canvas.openSubgraph(node.subgraph, node); }}")
        self.page.wait_for_timeout(300)

    def sent(self, kind: str) -> dict[str, Any]:
        """What would be sent as the inputs of the only node of a kind."""
        (inputs,) = [node["inputs"] for node in self.prompt().values() if node["class_type"] == kind]
        return inputs

    def prompt(self) -> dict[str, Any]:
        """What would be sent."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def saved(self) -> dict[str, Any]:
        """What would be saved."""
        return json.loads(self.page.evaluate("() => JSON.stringify(app.graph.serialize())"))

    def watch_end(self) -> None:
        """Let `window.ended` say how the next run ends."""
        self.page.evaluate(
            """() => { window.ended = null;
                for (const name of ['execution_success', 'execution_error', 'execution_interrupted'])
                    app.api.addEventListener(name, () => { window.ended ??= name }, {once: true}); }"""
        )

    def run(self) -> None:
        self.watch_end()
        self.page.evaluate("() => { app.queuePrompt(0, 1); }")
        ended = self.page.wait_for_function("() => window.ended", timeout=240_000).json_value()
        assert ended == "execution_success", ended
        self.page.wait_for_timeout(500)

    def shot(self, name: str) -> Path:
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"{name}-{'nodes2' if self.vue else 'classic'}-{self.language}.png"
        self.page.screenshot(path=path)
        return path


def place(board, x, y):
    """A place of a picture on the page: it is 72 wide and 48 high, and whole on its board."""
    box = board.bounding_box()
    scale = min(box["width"] / 72, box["height"] / 48)
    left, top = box["x"] + (box["width"] - 72 * scale) / 2, box["y"] + (box["height"] - 48 * scale) / 2
    return left + x * scale, top + y * scale


class Brush:
    """The brush of the only node of a kind, in the words of a person."""

    def __init__(self, canvas, kind):
        self.canvas, self.kind, self.page = canvas, kind, canvas.page
        canvas.look_at(kind, scale=1.2)
        self.page.wait_for_function("() => document.querySelector('.flowcore-brush-board img')?.naturalWidth > 0")

    def strokes(self):
        return json.loads(self.canvas.value(self.kind, "painting") or "[]")

    def tool(self, name):
        return self.page.locator(f".flowcore-brush-tools [data-tool='{name}']")

    def at(self, x, y):
        return place(self.page.locator(BOARD), 72 * x, 48 * y)

    def drag(self, *places):
        self.canvas.drag(*(self.at(*place) for place in places))

    def seen(self, x, y):
        self.page.mouse.move(5, 5)  # the ring is away
        left, top = self.at(x, y)
        picture = np.asarray(Image.open(self.canvas.shot("brush-seen")).convert("RGB"), dtype=int)
        return picture[round(top), round(left)]


SAVED = "() => /^Saved as output.flowcore.saved_/.test(document.querySelector('.flowcore-gallery ~ div').textContent)"


PAD = ".flowcore-pad section > div"


BOARD = ".flowcore-brush-board"
