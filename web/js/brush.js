// The brush of Flow Paint Colors and Flow Paint Temperature: it paints on the picture and writes the strokes into the widget
// `painting`, which is all that is saved and sent.
import {
  FULL_SCREEN, addElement, consume, fitNode, icon, make, makeHint, patchAfter, setLabel, setValue, widgetOf,
} from "./canvas.js";
import { app } from "./frontend.js";
import { addressOf, pictureWidget, onUpstreamChoice, pictureAt } from "./picture.js";
import { onResult } from "./runs.js";

const KINDS = { FlowcorePaintHints: "color", FlowcorePaintTemperature: "amount" };
const RUN = "flowcore_canvas"; // the key in a node's output
const HEIGHT = 350; // pixels of the board, its tools and the text below it, at least
const WIDTH = 450; // pixels of a new node
const SHARP = 1024; // pixels of the longer side of the canvas
const SIZES = [0.005, 0.4]; // smallest and largest brush, as fractions of the longer side
const DIGITS = 1e4; // to which places and sizes are rounded
const STRAIGHT = 0.0008; // distance from the line between its neighbors up to which a point is dropped
const COLD = [36, 92, 201], MILD = [236, 232, 220], HOT = [214, 62, 38]; // of amounts, as in `temperature` of nodes/widgets.py
const SWATCHES = ["#c98f6b", "#a8412f", "#5c7f3b", "#5a8fc8", "#808080"];

const ICONS = {
  brush: "M20 3 10 13M10.5 12.5c-3 0-4 2-4 4S5 20 3 20c2 1.5 8 1.5 9-2 .6-2.2-.2-4-1.5-5.5",
  erase: "m7 20-4-4L14 5l5 5-9 10zM9 10l5 5M7 20h13",
  dropper: "m13 7 4 4M15 5l1.5-1.5a2 2 0 0 1 3 3L18 8l1 1-2 2-6-6 2-2 1 1M12 8l-8 8v4h4l8-8",
  undo: "M8 5 4 9l4 4M4 9h10a6 6 0 0 1 0 11h-3",
  redo: "m16 5 4 4-4 4M20 9H10a6 6 0 0 0 0 11h3",
  clear: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  whole: FULL_SCREEN,
};
const KEYS = { b: "brush", e: "erase", i: "dropper", f: "whole" };

app.registerExtension({
  name: "flowcore.brush",
  nodeCreated(node) {
    const painting = KINDS[node.comfyClass] && widgetOf(node, "painting");
    if (painting) new Brush(node, painting, KINDS[node.comfyClass]);
  },
});

onResult((node, output) => node.flowcoreBrush?.onRun(output));

class Brush {
  constructor(node, painting, kind) {
    Object.assign(this, { node, painting, kind, tool: "brush", size: kind === "color" ? 0.03 : 0.12, undone: [] });
    node.flowcoreBrush = this;
    this.color = SWATCHES[0];
    this.amount = 1;
    this.strokes = parse(painting.value);
    this.past = []; // earlier strokes, for undo
    painting.hidden = painting.options.hidden = true;
    this.build();
    const widget = addElement(node, "flowcore_brush", this.frame, HEIGHT, STYLE_SHEET, "painting");
    widget.onRemove = () => this.observer.disconnect();
    fitNode(node, WIDTH);
    this.watchInputs();
    this.render();
    this.selectTool("brush");
  }

  // --- elements

  build() {
    const [onload, onerror] = [() => this.render(), () => this.showPicture(undefined)];
    this.picture = make("img", { alt: "", draggable: false, onload, onerror });
    this.layer = make("canvas", { width: SHARP, height: SHARP });
    this.ring = make("u");
    const board = { className: `flowcore-brush-board flowcore-view ${this.kind}`, tabIndex: 0, role: "application" };
    this.board = make("div", board, this.picture, this.layer, this.ring, makeHint("unpainted"));
    // The frontend leaves Ctrl+Z to elements that look like editors.
    this.board.type = "textarea"; // up to version 1.47
    Object.defineProperty(this.board, "isContentEditable", { value: true }); // later versions
    this.buttons = {};
    for (const [name, path] of Object.entries(ICONS)) {
      const button = make("button", { type: "button", innerHTML: icon(path), onclick: () => this.press(name) });
      button.dataset.tool = name;
      this.buttons[name] = button;
      setLabel(button, name);
    }
    this.inkInputs = this.kind === "color" ? this.colorInput() : this.amountInput();
    this.sizeSlider = make("input", { type: "range", min: 0, max: 1, step: 0.001, className: "size" });
    const sizeAt = (share) => SIZES[0] * (SIZES[1] / SIZES[0]) ** share;
    this.sizeSlider.addEventListener("input", () => this.setSize(sizeAt(Number(this.sizeSlider.value))));
    setLabel(this.sizeSlider, "size");
    const { brush, erase, dropper, undo, redo, clear, whole } = this.buttons;
    const left = [...this.inkInputs, brush, erase, ...(this.kind === "color" ? [dropper] : []), this.sizeSlider];
    const tools = make("div", { className: "flowcore-brush-tools" }, ...left, make("i"), undo, redo, clear, whole);
    this.area = make("div", { className: "flowcore-area" }); // which has its place from the start, so that the board keeps its size
    this.frame = make("div", { className: "flowcore-brush" }, tools, this.board, this.area);
    // Drags must not move the canvas, nor keys act as shortcuts of the page.
    tools.addEventListener("pointerdown", (event) => event.stopPropagation());
    this.frame.addEventListener("keydown", (event) => this.key(event));
    this.board.addEventListener("pointerdown", (event) => this.down(event));
    this.board.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) this.board.addEventListener(end, (event) => this.up(event));
    this.observer = new ResizeObserver(() => { // it has no size until its subgraph is open
      this.setSize(this.size);
      this.render();
    });
    this.observer.observe(this.board);
    setLabel(this.board, "paint");
    this.setSize(this.size);
  }

  colorInput() {
    this.well = make("input", { type: "color", value: this.color, oninput: () => this.setColor(this.well.value) });
    setLabel(this.well, "color");
    const onclick = ({ currentTarget }) => this.setColor(currentTarget.dataset.color);
    this.swatches = SWATCHES.map((color) => this.tint(make("button", { type: "button", className: "swatch", onclick }), color));
    return [this.well, ...this.swatches];
  }

  amountInput() {
    const slider = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: this.amount, className: "amount" });
    slider.style.background = `linear-gradient(to right, ${heat(0)}, ${heat(0.55)} 55%, ${heat(1)})`;
    slider.oninput = () => {
      this.amount = Number(slider.value);
      if (this.tool === "erase") this.selectTool("brush");
    };
    setLabel(slider, "amount");
    return [slider];
  }

  tint(swatch, color) {
    swatch.dataset.color = swatch.style.background = swatch.title = color;
    swatch.setAttribute("aria-label", color);
    return swatch;
  }

  // --- what the node knows

  /** Follow changes of the text, of the wire, and of the picture at its other end. */
  watchInputs() {
    patchAfter(this.painting, "callback", () => this.update());
    onUpstreamChoice(this.node, "image", pictureWidget, (_, hasChanged) => {
      if (hasChanged) this.setStrokes([]); // the strokes were on the picture before; undo brings them back
      this.update();
    });
    this.board.addEventListener("pointerenter", () => this.update()); // there is no event when another node gets a picture
  }

  /** Take over the strokes of the widget, unless they are ours, and the picture at the input. */
  update() {
    const { value } = this.painting;
    if (format(this.strokes) !== (value ?? "")) [this.strokes, this.past, this.undone] = [parse(value), [], []];
    this.showPicture(pictureAt(this.node, "image") ?? this.last);
    this.render();
  }

  /** Remember the picture that a run of the node has saved. */
  onRun(output) {
    const [saved] = output[RUN] ?? [];
    if (saved) this.last = addressOf(saved);
    this.update();
  }

  /** Show the picture below the strokes; without an address, a hint. */
  showPicture(address) {
    this.board.classList.toggle("empty", !address);
    if (this.picture.getAttribute("src") === (address ?? null)) return;
    if (address) this.picture.src = address;
    else this.picture.removeAttribute("src");
  }

  // --- tools

  /** Do what a button says. */
  press(name) {
    if (name === "undo") this.moveStrokes(this.past, this.undone);
    else if (name === "redo") this.moveStrokes(this.undone, this.past);
    else if (name === "clear") this.setStrokes([]);
    else if (name === "whole") this.enlarge();
    else this.selectTool(name);
    this.board.focus({ preventScroll: true });
  }

  /** Paint with a tool from now on. */
  selectTool(name) {
    this.tool = name;
    for (const each of ["brush", "erase", "dropper"]) this.buttons[each].setAttribute("aria-pressed", each === name);
    this.board.classList.toggle("pick", name === "dropper");
  }

  /** Take a color, and paint with it from now on. */
  setColor(color) {
    this.color = this.well.value = color;
    this.selectTool("brush");
  }

  /** Set the size of the brush, and draw its ring. */
  setSize(size) {
    this.size = Math.min(SIZES[1], Math.max(SIZES[0], size));
    this.sizeSlider.value = Math.log(this.size / SIZES[0]) / Math.log(SIZES[1] / SIZES[0]);
    const diameter = this.size * Math.max(...this.box().slice(2));
    this.ring.style.width = this.ring.style.height = `${diameter}px`;
  }

  enlarge() {
    if (document.fullscreenElement === this.frame) document.exitFullscreen();
    else this.frame.requestFullscreen?.().catch(() => {});
  }

  key(event) {
    const key = event.key.toLowerCase();
    const typing = event.target.tagName === "INPUT";
    let handled = true;
    if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) {
      this.press(key === "y" || event.shiftKey ? "redo" : "undo");
    } else if (event.ctrlKey || event.metaKey || event.altKey) handled = false;
    else if (key === "[" || key === "]") this.setSize(this.size * (key === "]" ? 1.2 : 1 / 1.2));
    else if (KEYS[key] && !(KEYS[key] === "dropper" && this.kind !== "color")) this.press(KEYS[key]);
    else handled = typing;
    if (!handled) return;
    event.stopPropagation();
    if (!typing) event.preventDefault();
  }

  // --- painting

  /** The box of the picture on the board, in the board's pixels: left, top, width, height. */
  box() {
    const { picture, board: { clientWidth: wide, clientHeight: high } } = this;
    const shape = picture.naturalWidth && picture.naturalHeight ? picture.naturalWidth / picture.naturalHeight : 1;
    const width = Math.min(wide, high * shape), height = width / shape;
    return [(wide - width) / 2, (high - height) / 2, width, height];
  }

  /** The position of a pointer, in fractions of the picture and in pixels of the board. */
  position(event) {
    const board = this.board.getBoundingClientRect(); // as zoomed
    const zoom = board.width / (this.board.offsetWidth || 1);
    const [x, y] = [(event.clientX - board.left) / zoom, (event.clientY - board.top) / zoom];
    const [left, top, width, height] = this.box();
    return { share: [(x - left) / width, (y - top) / height], at: [x, y] };
  }

  down(event) {
    if (event.button !== 0 || this.board.classList.contains("empty")) return;
    consume(event);
    this.board.focus({ preventScroll: true });
    const { share } = this.position(event);
    if (this.kind === "color" && (this.tool === "dropper" || event.altKey)) {
      this.takeColorAt(share);
      return;
    }
    this.board.setPointerCapture(event.pointerId);
    const last = event.shiftKey ? this.strokes.at(-1)?.points.at(-1) : undefined;
    const ink = this.tool === "erase" ? { erase: true } : { [this.kind]: this[this.kind] };
    this.stroke = { ...ink, size: Math.round(this.size * DIGITS) / DIGITS, points: last ? [last, share] : [share] };
    this.render();
  }

  move(event) {
    const { share, at } = this.position(event);
    this.ring.style.left = `${at[0]}px`;
    this.ring.style.top = `${at[1]}px`;
    if (!this.stroke || !this.board.hasPointerCapture(event.pointerId)) return;
    event.stopPropagation();
    for (const each of event.getCoalescedEvents?.() ?? []) this.stroke.points.push(this.position(each).share);
    this.stroke.points.push(share);
    this.render();
  }

  up(event) {
    if (!this.stroke) return;
    event.stopPropagation();
    const stroke = { ...this.stroke, points: simplified(this.stroke.points) };
    this.stroke = undefined;
    this.setStrokes([...this.strokes, stroke]);
    this.addSwatch(stroke.color);
  }

  /** Add a color to the swatches. */
  addSwatch(color) {
    if (!color || this.swatches.some((swatch) => swatch.dataset.color === color)) return;
    const colors = [color, ...this.swatches.map((swatch) => swatch.dataset.color)];
    this.swatches.forEach((swatch, k) => this.tint(swatch, colors[k]));
  }

  /** Replace the strokes; undo brings them back. */
  setStrokes(strokes) {
    if (!strokes.length && !this.strokes.length) return;
    this.past.push(this.strokes);
    this.undone = [];
    this.writeStrokes(strokes);
  }

  /** Undo or redo: take the strokes from one stack, and put the present ones on the other. */
  moveStrokes(from, to) {
    if (!from.length) return;
    to.push(this.strokes);
    this.writeStrokes(from.pop());
  }

  writeStrokes(strokes) {
    this.strokes = strokes;
    setValue(this.node, this.painting, format(strokes));
    this.render();
  }

  /** Take the color of the picture and the paint at a position. */
  takeColorAt([x, y]) {
    const pixel = [0, 0, 1, 1]; // left, top, width, height
    const context = make("canvas", { width: 1, height: 1 }).getContext("2d");
    const pixelOf = ({ width, height }) => [Math.floor(x * width), Math.floor(y * height), 1, 1];
    const { naturalWidth: width, naturalHeight: height } = this.picture;
    context.drawImage(this.picture, ...pixelOf({ width, height }), ...pixel);
    context.drawImage(this.layer, ...pixelOf(this.layer), ...pixel);
    const [red, green, blue] = context.getImageData(...pixel).data;
    this.setColor(`#${[red, green, blue].map((value) => value.toString(16).padStart(2, "0")).join("")}`);
  }

  /** Show the strokes, and which tools can be used. */
  render() {
    const [, , width, height] = this.box();
    const scale = SHARP / Math.max(width, height, 1);
    const sides = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    if (this.layer.width !== sides[0] || this.layer.height !== sides[1]) [this.layer.width, this.layer.height] = sides;
    draw(this.layer, this.stroke ? [...this.strokes, this.stroke] : this.strokes);
    const tone = this.kind === "color" ? this.color : heat(this.amount);
    this.ring.style.background = this.tool === "erase" ? "" : `color-mix(in srgb, ${tone} 45%, transparent)`;
    this.buttons.undo.disabled = !this.past.length;
    this.buttons.redo.disabled = !this.undone.length;
    this.buttons.clear.disabled = !this.strokes.length;
  }
}

// --- strokes

/** Read strokes, see flowcore/images/strokes.py; any other text has none. */
function parse(text) {
  try {
    const strokes = JSON.parse(text || "[]");
    const isValid = (stroke) => stroke?.points?.length && stroke.points.every((p) => p.every(Number.isFinite)) && stroke.size > 0;
    return Array.isArray(strokes) ? strokes.filter(isValid) : [];
  } catch {
    return [];
  }
}

/** Write strokes, one per line. */
const format = (strokes) => (strokes.length ? `[${strokes.map((stroke) => JSON.stringify(stroke)).join(",\n")}]` : "");

/** Drop points that are nearly on a straight line between others, and digits that nobody sees. */
const simplified = (points) =>
  thinned(points).map((point) => point.map((share) => Math.round(share * DIGITS) / DIGITS));

/** The points that the Ramer-Douglas-Peucker algorithm keeps. */
function thinned(points) {
  if (points.length < 3) return points;
  const [first, last] = [points[0], points.at(-1)];
  let far = 0, farthest = 0;
  for (let k = 1; k < points.length - 1; k++) {
    const off = distance(points[k], first, last);
    if (off > far) [far, farthest] = [off, k];
  }
  if (far < STRAIGHT) return [first, last];
  return [...thinned(points.slice(0, farthest + 1)).slice(0, -1), ...thinned(points.slice(farthest))];
}

/** The distance of a point from the line between two others. */
function distance([x, y], [startX, startY], [endX, endY]) {
  const [acrossX, acrossY] = [endX - startX, endY - startY];
  const squared = acrossX ** 2 + acrossY ** 2;
  const along = squared ? Math.min(1, Math.max(0, ((x - startX) * acrossX + (y - startY) * acrossY) / squared)) : 0;
  return Math.hypot(x - startX - along * acrossX, y - startY - along * acrossY);
}

/** The color of an amount, as CSS writes it. */
function heat(amount) {
  const [from, to, share] = amount < 0.55 ? [COLD, MILD, amount / 0.55] : [MILD, HOT, (amount - 0.55) / 0.45];
  return `rgb(${from.map((value, k) => Math.round(value + (to[k] - value) * share)).join(" ")})`;
}

/** Clear a canvas and draw strokes on it. */
function draw(canvas, strokes) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    context.strokeStyle = stroke.color ?? (stroke.erase ? "#000" : heat(stroke.amount ?? 0));
    context.lineWidth = Math.max(1, stroke.size * Math.max(width, height));
    context.beginPath();
    const [start, ...path] = stroke.points;
    context.moveTo(start[0] * width, start[1] * height);
    for (const [x, y] of path.length ? path : [start]) context.lineTo(x * width, y * height);
    context.stroke();
  }
}

// --- styles

const STYLE_SHEET = `<style>
.flowcore-brush { display: flex; flex-direction: column; gap: 6px; box-sizing: border-box; }
.flowcore-brush:fullscreen { padding: 16px; background: var(--comfy-menu-bg, #1a1a1a); }
.flowcore-brush .flowcore-area { flex: none; min-height: 48px; }
.flowcore-brush-tools { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; flex: none; }
.flowcore-brush-tools button {
  width: 26px; height: 26px; padding: 4px; border: 1px solid transparent; border-radius: 6px; cursor: pointer;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); line-height: 0; flex: none; }
.flowcore-brush-tools button:hover:enabled { border-color: var(--descrip-text, #999); }
.flowcore-brush-tools button:disabled { opacity: 0.35; cursor: default; }
.flowcore-brush-tools button[aria-pressed="true"] { background: var(--p-primary-color, #4a90e2); color: #fff; }
.flowcore-brush-tools button.swatch { width: 18px; height: 18px; padding: 0; border-radius: 50%; border-color: #0006; }
.flowcore-brush-tools svg {
  width: 100%; height: 100%; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
.flowcore-brush-tools input[type="color"] {
  width: 34px; height: 26px; padding: 0; border: 0; border-radius: 6px; background: none; cursor: pointer; flex: none; }
.flowcore-brush-tools input[type="range"] {
  flex: 1 1 40px; min-width: 40px; max-width: 160px; height: 18px; margin: 0 2px; accent-color: var(--p-primary-color, #4a90e2); }
.flowcore-brush-tools input.amount { appearance: none; border-radius: 9px; }
.flowcore-brush-tools input.amount::-webkit-slider-thumb {
  appearance: none; width: 14px; height: 18px; border-radius: 7px; background: #fff; border: 2px solid #333; }
.flowcore-brush-tools input.amount::-moz-range-thumb {
  width: 10px; height: 14px; border-radius: 7px; background: #fff; border: 2px solid #333; }
.flowcore-brush-tools i { flex: 1; }
.flowcore-brush-board { position: relative; flex: 1 1 0; min-height: 160px; overflow: hidden; border-radius: 6px; touch-action: none;
  background: var(--comfy-input-bg, #222); cursor: none; outline-offset: -2px; }
.flowcore-brush-board.pick { cursor: crosshair; }
.flowcore-brush-board.empty { cursor: default; }
.flowcore-brush-board img, .flowcore-brush-board canvas {
  position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; pointer-events: none; }
.flowcore-brush-board.color img { filter: grayscale(1); }
.flowcore-brush-board.color canvas { opacity: 0.85; }
.flowcore-brush-board.amount canvas { opacity: 0.6; }
.flowcore-brush-board u { position: absolute; box-sizing: border-box; border-radius: 50%; border: 1.5px solid #fff; pointer-events: none;
  box-shadow: 0 0 0 1px #000a, inset 0 0 0 1px #000a; transform: translate(-50%, -50%); opacity: 0; }
.flowcore-brush-board:hover u { opacity: 1; }
.flowcore-brush-board.pick u { display: none; }
.flowcore-brush-board p { position: absolute; inset: 0; pointer-events: none; }
</style>`;
