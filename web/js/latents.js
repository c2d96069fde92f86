// Live pictures on nodes of latents: the pad of Flow Latent Explorer, and the picture of Flow Style.
import {
  addElement, consume, fitNode, make, patchAfter, setHidden, setLabel, setValue, sharpen, widgetOf, wired,
} from "./canvas.js";
import { app } from "./frontend.js";
import { Live } from "./live.js";
import { onModel } from "./models.js";

const PAD_HEIGHT = 240, PAD_WIDTH = 380; // of a new node, in pixels
const STYLE_HEIGHT = 160;
const CORNERS = { a: [0, 0], b: [1, 0], c: [0, 1], d: [1, 1] };
const KEYS = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, -0.01], ArrowDown: [0, 0.01] };

app.registerExtension({
  name: "flowcore.latents",
  nodeCreated(node) {
    const axes = ["x", "y"].map((name) => widgetOf(node, name));
    if (node.comfyClass === "FlowcoreLatentExplorer" && axes.every(Boolean)) addPad(node, axes);
    if (node.comfyClass === "FlowcoreStyle") addStyle(node);
  },
});

/**
 * Add a square between four images. The widgets `x` and `y` hold the position; the pad only shows and writes them. After a run,
 * it shows the images of the corners and, while the point is dragged, the one at the point.
 */
function addPad(node, axes) {
  const dot = make("i");
  const pad = make("div", { tabIndex: 0, role: "application" }, dot);
  const corners = Object.keys(CORNERS).map((name) => make("b", { style: `grid-area: ${name}` }, make("span", {}, name)));
  const frame = make("div", { className: "flowcore-pad" }, make("section", {}, pad, ...corners));
  setLabel(pad, "pad");

  const position = () => Object.fromEntries(axes.filter(({ name }) => !wired(node, name)).map((axis) => [axis.name, axis.value]));
  const live = new Live(
    node,
    () => {
      for (const corner of corners) {
        const [x, y] = CORNERS[corner.textContent];
        if (wired(node, corner.textContent)) live.ask(corner.textContent, { x, y });
      }
      live.ask("pad", position());
    },
    (name, url) => {
      const square = corners.find((corner) => corner.textContent === name) ?? pad;
      if (!square.querySelector("img")) square.prepend(make("img", { alt: "", draggable: false }));
      sharpen(square.querySelector("img"), url);
    },
  );
  const update = () => {
    dot.style.left = `${100 * axes[0].value}%`;
    dot.style.top = `${100 * axes[1].value}%`;
    for (const corner of corners) corner.classList.toggle("open", !wired(node, corner.textContent));
  };
  const move = (to) => {
    axes.forEach((axis, k) => {
      const value = Math.round(1000 * Math.min(1, Math.max(0, to[k]))) / 1000;
      if (!wired(node, axis.name)) setValue(node, axis, value);
    });
    update();
  };
  const follow = (event) => {
    const { left, top, width, height } = pad.getBoundingClientRect(); // as zoomed
    move([(event.clientX - left) / width, (event.clientY - top) / height]);
  };

  pad.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    consume(event);
    pad.focus({ preventScroll: true });
    pad.setPointerCapture(event.pointerId);
    follow(event);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!pad.hasPointerCapture(event.pointerId)) return;
    event.stopPropagation();
    follow(event);
  });
  pad.addEventListener("keydown", (event) => {
    const step = KEYS[event.key];
    if (!step) return;
    consume(event);
    move(axes.map((axis, k) => axis.value + (event.shiftKey ? 10 : 1) * step[k]));
  });

  addElement(node, "flowcore_pad", frame, PAD_HEIGHT, PAD_STYLE_SHEET);
  for (const axis of axes)
    patchAfter(axis, "callback", () => {
      update();
      live.ask("pad", position());
    });
  for (const event of ["onConfigure", "onConnectionsChange"]) patchAfter(node, event, update);
  update();
  fitNode(node, PAD_WIDTH);
}

/** Show below the sliders of Flow Style what it makes of them: after a run, and while they are dragged. */
function addStyle(node) {
  const numbers = node.widgets.filter((widget) => typeof widget.value === "number");
  const ask = () => {
    const unwired = numbers.filter((widget) => !wired(node, widget.name));
    live.ask("style", Object.fromEntries(unwired.map((widget) => [widget.name, widget.value])));
  };
  let image;
  const live = new Live(node, ask, (_, url) => sharpen((image ??= addPicture(node)), url));
  for (const widget of numbers) patchAfter(widget, "callback", ask);
  const sliders = numbers.filter(({ name }) => name !== "strength");
  // A nonzero one stays, because it is the reason for an error.
  onModel(node, (model) => setHidden(node, sliders, ({ name, value }) => model && !value && !model.styles.includes(name)));
}

function addPicture(node) {
  const image = make("img", { alt: "", draggable: false });
  addElement(node, "flowcore_live", make("div", { className: "flowcore-live" }, image), STYLE_HEIGHT, LIVE_STYLE_SHEET);
  fitNode(node);
  node.setDirtyCanvas?.(true, true);
  return image;
}

// --- styles

const PAD_STYLE_SHEET = `<style>
.flowcore-pad { container-type: size; }
.flowcore-pad section {
  --corner: min(72px, 22cqw); --side: min(100cqh, 100cqw - 2 * var(--corner) - 12px); height: 100%; display: grid; gap: 6px;
  align-content: center; justify-content: center; grid-template: "a pad b" auto "c pad d" auto / var(--corner) var(--side) var(--corner); }
.flowcore-pad section > div { grid-area: pad; position: relative; width: var(--side); height: var(--side); box-sizing: border-box;
  border: 1px solid var(--border-color, #555); border-radius: 8px; cursor: crosshair; touch-action: none;
  --line: transparent calc(50% - 0.5px), var(--border-color, #555) 0, transparent calc(50% + 0.5px);
  background: linear-gradient(to right, var(--line)), linear-gradient(to bottom, var(--line)), var(--comfy-input-bg, #222); }
.flowcore-pad section > div:has(img) { background: var(--comfy-input-bg, #222); }
.flowcore-pad b { position: relative; width: var(--corner); height: var(--corner); box-sizing: border-box; overflow: hidden;
  border: 1px solid var(--border-color, #555); border-radius: 6px; background: var(--comfy-input-bg, #222);
  font: 600 12px/18px sans-serif; color: var(--input-text, #ddd); pointer-events: none; }
.flowcore-pad b.open { opacity: 0.3; }
.flowcore-pad b.open img { display: none; }
.flowcore-pad b:nth-of-type(n + 3) { align-self: end; }
.flowcore-pad b span { position: absolute; left: 0; top: 0; padding: 0 6px; }
.flowcore-pad b:has(img) span { border-bottom-right-radius: 5px; color: #fff; background: rgba(0, 0, 0, 0.55); }
.flowcore-pad img {
  position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; border-radius: 6px; pointer-events: none; }
.flowcore-pad i { position: absolute; z-index: 1; width: 14px; height: 14px; margin: -7px; box-sizing: border-box; border-radius: 50%;
  border: 2px solid #fff; background: var(--p-primary-color, #4a90e2); box-shadow: 0 0 4px rgba(0, 0, 0, 0.6); pointer-events: none; }
</style>`;

const LIVE_STYLE_SHEET = `<style>
.flowcore-live { position: relative; }
.flowcore-live img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
</style>`;
