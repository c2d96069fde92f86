// A viewer of two pictures on top of each other: a line wipes between them, the wheel zooms, a drag pans, and a click opens full
// screen. It knows nothing about nodes.
import { FULL_SCREEN, consume, makeHint, icon, setLabel, make, translate } from "./canvas.js";

const NEAR = 14; // screen pixels around the line in which a drag moves it
const STILL = 4; // screen pixels that a click may move
const CLOSEST = 32; // screen pixels per pixel of the picture, at most
const BLOCKS = 4; // screen pixels per pixel from which pixels are shown as squares

/**
 * A viewer of pictures `{name, url, source, group, head, frame}`: `source` is the URL of what a picture was made from, if known;
 * arrow keys stay within a `group`, `head` is shown above the picture, as their names are, and a `frame` cannot be picked.
 */
export class Viewer {
  /** Functions of the index of a picture: `onPick` picks it, `onShow` is told that it is shown, `onSave` saves it. */
  constructor(onPick, onShow, onSave) {
    this.pictures = [];
    this.left = null; // "source", the index of a picture, or null if nothing is compared
    this.right = 0;
    this.picked = -1;
    this.wipe = 0.5;
    this.alone = false; // whether only the left one is shown, while the space bar is down
    Object.assign(this, { onPick, onShow, onSave });
    this.reset();
    this.build();
  }

  build() {
    const element = (this.element = make("div", { className: "flowcore-viewer flowcore-view empty", tabIndex: 0, role: "application" }));
    this.layers = ["before", "after"].map((className) => {
      const image = make("img", { alt: "", draggable: false, onload: () => this.layout() });
      return make("div", { className }, image);
    });
    this.live = make("img", { alt: "", draggable: false, hidden: true });
    this.layers[1].append(this.live);
    this.line = make("hr");
    this.stage = make("div", { className: "stage" }, ...this.layers, this.line);
    const names = make("div", { className: "bar names" });
    const tools = make("div", { className: "bar tools" });
    this.choices = ["left", "right"].map((side) => {
      const choice = make("select");
      setLabel(choice, side);
      choice.addEventListener("change", () => {
        this[side] = choice.value === "" ? null : choice.value === "source" ? "source" : Number(choice.value);
        this.update();
        element.focus({ preventScroll: true });
      });
      names.append(choice);
      return choice;
    });
    const tool = (key, sign, act) => {
      const onclick = () => {
        act();
        element.focus({ preventScroll: true });
      };
      const button = make("button", { type: "button", innerHTML: sign, className: key, onclick });
      setLabel(button, key);
      tools.append(button);
      return button;
    };
    tool("previous", "‹", () => this.step(-1));
    tool("next", "›", () => this.step(1));
    tool("earlier", "«", () => this.step(0, -1));
    tool("later", "»", () => this.step(0, 1));
    tool("fit", "⤢", () => this.fit());
    tool("actual", "1:1", () => this.actual());
    this.pick = tool("choose", "✓", () => this.onPick(this.right));
    tool("save", icon("M12 4v11M7 10l5 5 5-5M4 20h16"), () => this.onSave(this.right));
    tool("open", icon(FULL_SCREEN), () => this.open());
    tool("close", "✕", () => this.close());
    translate("keys").then((text) => element.setAttribute("aria-label", text));
    this.head = make("output", { className: "head" });
    element.append(names, this.head, this.stage, tools, (this.hint = makeHint("unrun")));
    element.insertAdjacentHTML("beforeend", STYLE_SHEET);
    this.listen();
    new ResizeObserver(() => this.layout()).observe(this.stage);
  }

  /** Show other pictures; what is compared stays, if there is such a picture, and so do zoom and position. */
  show(pictures, right = this.right) {
    const hadSource = this.pictures.some((picture) => picture.source);
    this.pictures = pictures;
    this.right = Math.min(Math.max(0, right), pictures.length - 1);
    const hasSource = pictures.some((picture) => picture.source);
    const hadNoChoice = this.left === null && !hadSource;
    const isGone = this.left === "source" ? !hasSource : this.left >= pictures.length; // null counts as 0
    if (hadNoChoice || isGone) this.left = hasSource ? "source" : null;
    this.update();
  }

  /** Mark the picture that is picked, by its index; -1 for none. */
  mark(picked) {
    this.picked = picked;
    this.pick.setAttribute("aria-pressed", String(picked === this.right));
  }

  update() {
    const after = this.pictures[this.right];
    this.element.classList.toggle("empty", !after);
    if (!after) return;
    const before = this.left === "source" ? after.source : this.pictures[this.left]?.url;
    const [behind, front] = this.layers.map((layer) => layer.firstElementChild);
    if (before && behind.getAttribute("src") !== before) behind.src = before;
    if (front.getAttribute("src") !== after.url) front.src = after.url;
    this.overlay("");
    this.compared = Boolean(before);
    const every = this.pictures.map((picture, place) => new Option(picture.name, place));
    const extra = [new Option("–", ""), ...(after.source ? [new Option(after.sourceName, "source")] : [])];
    this.choices[0].replaceChildren(...extra, ...every);
    this.choices[0].value = String(this.left ?? "");
    this.choices[1].replaceChildren(...every.map((made) => made.cloneNode(true)));
    this.choices[1].value = String(this.right);
    const rows = this.groups(), { length } = this.pictures;
    const has = { several: rows.some((row) => row.includes(this.right) && row[1]), groups: rows[1], picks: length > 1 && !after.frame };
    for (const [name, there] of Object.entries(has)) this.element.classList.toggle(name, Boolean(there));
    this.showMessage(after.head);
    this.mark(this.picked);
    this.layout();
  }

  /** Show a live picture, which may be partly transparent, over the right one until that changes; none if the URL is "". */
  overlay(url) {
    this.live.hidden = !url;
    if (url) this.live.src = url;
  }

  /** The position in the middle of the view, in fractions of the picture's sides. */
  middle() {
    return this.size().map((side, k) => 0.5 - [this.x, this.y][k] / (side * this.fitScale() * this.zoom));
  }

  /** Show a text above the picture, until another picture is shown. */
  showMessage(text = "") {
    this.head.textContent = text;
  }

  /** The indices of the pictures of every group. */
  groups() {
    return [...Map.groupBy(this.pictures.keys(), (k) => this.pictures[k].group).values()];
  }

  /** Show the next picture of this group, or the one at the same position in another group. */
  step(by, down = 0) {
    const rows = this.groups(), current = rows.findIndex((row) => row.includes(this.right));
    // At the ends it starts over: `at` counts negative indices from the end.
    const row = rows.at((current + down) % rows.length), column = rows[current].indexOf(this.right) + by;
    this.right = row.at(down ? Math.min(column, row.length - 1) : column % row.length);
    this.update();
    this.onShow(this.right);
  }

  // --- zoom and position -------------------------------------------------------------------------------------------

  reset() {
    this.zoom = 1; // relative to the scale at which the whole picture fits
    this.x = this.y = 0; // from the middle of the view to that of the picture, in pixels of the view
  }

  fit() {
    this.reset();
    this.layout();
  }

  /** Show a pixel of the picture per pixel of the screen. */
  actual() {
    const { width, height } = this.stage.getBoundingClientRect();
    this.zoomTo(1 / (this.fitScale() * this.canvasZoom() * devicePixelRatio), width / 2, height / 2);
  }

  /** Screen pixels per pixel of the view: the canvas is zoomed, too. */
  canvasZoom() {
    return this.element.getBoundingClientRect().width / this.element.offsetWidth || 1;
  }

  /** Width and height of the right picture, in its own pixels. */
  size() {
    const image = this.layers[1].firstElementChild;
    return [image.naturalWidth || 1, image.naturalHeight || 1];
  }

  /** The scale at which the whole picture fits into the view. */
  fitScale() {
    const [wide, high] = this.size();
    return Math.min(this.stage.clientWidth / wide, this.stage.clientHeight / high) || 1;
  }

  /** Zoom around a position, in screen pixels from the corner of the view. */
  zoomTo(zoom, left, top) {
    const closest = Math.max(1, CLOSEST / (this.fitScale() * this.canvasZoom()));
    const next = Math.min(closest, Math.max(1, zoom));
    const x = left / this.canvasZoom() - this.stage.clientWidth / 2;
    const y = top / this.canvasZoom() - this.stage.clientHeight / 2;
    this.x = x - ((x - this.x) * next) / this.zoom;
    this.y = y - ((y - this.y) * next) / this.zoom;
    this.zoom = next;
    this.layout();
  }

  layout() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    const [pictureWidth, pictureHeight] = this.size();
    const scale = this.fitScale() * this.zoom;
    const [shownWidth, shownHeight] = [pictureWidth * scale, pictureHeight * scale];
    const within = (offset, picture, view) => {
      const limit = Math.max(0, (picture - view) / 2);
      return Math.min(limit, Math.max(-limit, offset));
    };
    this.x = within(this.x, shownWidth, width);
    this.y = within(this.y, shownHeight, height);
    for (const image of this.layers.flatMap((layer) => [...layer.children])) {
      const [left, top] = [(width - shownWidth) / 2 + this.x, (height - shownHeight) / 2 + this.y];
      Object.assign(image.style, { left: `${left}px`, top: `${top}px`, width: `${shownWidth}px`, height: `${shownHeight}px` });
      // A smaller source is smoothed.
      image.classList.toggle("blocks", scale * this.canvasZoom() >= BLOCKS && image.naturalWidth >= pictureWidth);
    }
    const [left, right] = [Math.max(0, (width - shownWidth) / 2), Math.min(width, (width + shownWidth) / 2)];
    const at = left + this.wipe * (right - left);
    const [before, after] = this.layers;
    before.style.visibility = this.compared ? "" : "hidden";
    after.style.visibility = this.compared && this.alone ? "hidden" : "";
    before.style.clipPath = `inset(0 ${width - at}px 0 0)`;
    if (this.alone) before.style.clipPath = "none";
    after.style.clipPath = this.compared ? `inset(0 0 0 ${at}px)` : "none";
    this.line.style.left = `${at}px`;
    this.line.classList.toggle("hidden", !this.compared || this.alone);
    this.bounds = [left, right, at];
  }

  // --- mouse and keyboard -----------------------------------------------------------------------------------------------

  listen() {
    const { element } = this;
    const at = (event) => {
      const { left, top } = this.stage.getBoundingClientRect();
      return [event.clientX - left, event.clientY - top];
    };
    const near = (event) => this.compared && Math.abs(at(event)[0] - this.bounds[2] * this.canvasZoom()) < NEAR;
    let drag = null;
    element.addEventListener("wheel", (event) => {
      consume(event); // do not zoom the canvas
      this.zoomTo(this.zoom * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event));
    });
    element.addEventListener("pointerdown", (event) => {
      event.stopPropagation(); // not a drag of the node
      if (event.button !== 0 || event.target.closest("select, button")) return;
      event.preventDefault();
      element.focus({ preventScroll: true });
      element.setPointerCapture(event.pointerId);
      const wipes = this.compared && (near(event) || this.zoom === 1);
      // A press near the line is a drag, not a click, even if the pointer does not move.
      drag = { wipes, from: [event.clientX, event.clientY], last: [event.clientX, event.clientY], moved: near(event) };
    });
    element.addEventListener("pointermove", (event) => {
      element.classList.toggle("line", !drag && near(event));
      if (!drag) return;
      event.stopPropagation();
      const far = Math.hypot(event.clientX - drag.from[0], event.clientY - drag.from[1]);
      drag.moved ||= far > STILL;
      if (!drag.moved) return;
      if (drag.wipes) {
        const [left, right] = this.bounds;
        this.wipe = Math.min(1, Math.max(0, (at(event)[0] / this.canvasZoom() - left) / (right - left || 1)));
      } else {
        element.classList.add("pan");
        this.x += (event.clientX - drag.last[0]) / this.canvasZoom();
        this.y += (event.clientY - drag.last[1]) / this.canvasZoom();
      }
      drag.last = [event.clientX, event.clientY];
      this.layout();
    });
    const end = (event) => {
      element.classList.remove("pan");
      const clicked = drag && !drag.moved && event.type === "pointerup";
      drag = null;
      if (clicked && !this.full) this.open();
    };
    for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, end);
    const fill = () => {
      element.classList.toggle("full", element.matches(":fullscreen, :popover-open"));
      this.fit();
    };
    for (const name of ["fullscreenchange", "toggle"]) element.addEventListener(name, fill);
    element.addEventListener("dblclick", (event) => event.stopPropagation());
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener("keyup", ({ key }) => key === " " && this.showAlone(false));
  }

  /** Show only the left picture, or both. */
  showAlone(alone) {
    this.alone = alone;
    this.layout();
  }

  /** Handle a key, unless it is for a menu, a button or the browser. */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("select")) return;
    if (event.target.closest?.("button") && (event.key === "Enter" || event.key === " ")) return;
    const { width, height } = this.stage.getBoundingClientRect();
    const acts = {
      ArrowRight: () => this.step(1),
      ArrowLeft: () => this.step(-1),
      PageDown: () => this.step(0, 1),
      PageUp: () => this.step(0, -1),
      ArrowDown: () => this.stepLeft(1),
      ArrowUp: () => this.stepLeft(-1),
      "+": () => this.zoomTo(this.zoom * 1.5, width / 2, height / 2),
      "-": () => this.zoomTo(this.zoom / 1.5, width / 2, height / 2),
      0: () => this.fit(),
      1: () => this.actual(),
      f: () => (this.full ? this.close() : this.open()),
      Enter: () => this.pictures.length > 1 && this.onPick(this.right),
      s: () => this.onSave(this.right),
      Escape: this.full && (() => this.close()),
      " ": () => this.showAlone(this.compared),
    };
    const act = acts[event.key === "=" ? "+" : event.key];
    if (act || this.full) event.stopPropagation(); // no shortcut of the page
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Show another picture on the left: the source and all pictures in turn. */
  stepLeft(by) {
    const values = [...this.choices[0].options].map(({ value }) => value).filter((value) => value !== "");
    const current = values.indexOf(String(this.left ?? ""));
    const next = values[(current + by + values.length) % values.length];
    this.left = next === "source" ? next : Number(next);
    this.update();
  }

  // --- full screen ------------------------------------------------------------------------------------------------------

  open(right = this.right) {
    if (!this.pictures.length) return;
    this.right = right;
    this.reset();
    this.update();
    const { element } = this;
    element.focus();
    // If full screen is not allowed, as in some embedded pages, fill the window.
    (element.requestFullscreen?.() ?? Promise.reject()).catch(() => {
      element.popover = "manual";
      element.showPopover();
    });
  }

  close() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.element.popover = null;
  }

  get full() {
    return this.element.classList.contains("full");
  }
}

// --- styles

const STYLE_SHEET = `<style>
.flowcore-viewer {
  position: relative; display: flex; flex-direction: column; overflow: hidden; border-radius: 6px; background: #161616; touch-action: none;
  user-select: none; outline-offset: -2px; cursor: zoom-in; min-height: 0; box-sizing: border-box; }
.flowcore-viewer .stage { position: relative; flex: 1 1 0; min-height: 0; overflow: hidden; }
.flowcore-viewer img { position: absolute; max-width: none; max-height: none; pointer-events: none; }
.flowcore-viewer img.blocks { image-rendering: pixelated; }
.flowcore-viewer .after, .flowcore-viewer .before { position: absolute; inset: 0; pointer-events: none; }
.flowcore-viewer hr {
  position: absolute; top: 0; bottom: 0; width: 2px; margin: 0 0 0 -1px; border: 0; overflow: visible; background: #fff; opacity: 0.9;
  box-shadow: 0 0 3px rgba(0, 0, 0, 0.7); pointer-events: none; }
.flowcore-viewer hr::after {
  content: ""; position: absolute; left: -8px; top: 50%; width: 18px; height: 18px; margin-top: -9px; border-radius: 50%;
  box-sizing: border-box; border: 2px solid #fff; background: rgba(0, 0, 0, 0.45); }
.flowcore-viewer.line { cursor: ew-resize; }
.flowcore-viewer.pan { cursor: grabbing; }
.flowcore-viewer .bar { display: flex; gap: 4px; align-items: center; pointer-events: none; }
.flowcore-viewer .bar.names { flex: none; padding: 2px; justify-content: space-between; }
.flowcore-viewer .bar.tools {
  position: absolute; left: 6px; right: 6px; bottom: 6px; justify-content: center; opacity: 0; transition: opacity 0.15s; }
.flowcore-viewer:hover .bar.tools, .flowcore-viewer:focus-within .bar.tools, .flowcore-viewer.full .bar.tools { opacity: 1; }
.flowcore-viewer select, .flowcore-viewer .bar button {
  pointer-events: auto; cursor: pointer; height: 22px; min-width: 22px; max-width: 46%; padding: 0 6px; margin: 0; box-sizing: border-box;
  border: 0; border-radius: 5px; font: 11px/22px sans-serif; color: #fff; background: rgba(0, 0, 0, 0.6); white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }
.flowcore-viewer select { appearance: none; text-align: center; }
.flowcore-viewer select option { color: #fff; background: #222; }
.flowcore-viewer select:hover, .flowcore-viewer .bar button:hover { background: rgba(0, 0, 0, 0.85); }
.flowcore-viewer .bar button[aria-pressed="true"] { background: var(--p-primary-color, #4a90e2); }
.flowcore-viewer .bar svg {
  display: block; height: 14px; margin: 0 auto; fill: none; stroke: currentColor; stroke-width: 2; pointer-events: none; }
.flowcore-viewer .hidden,
.flowcore-viewer:not(.several) .previous, .flowcore-viewer:not(.several) .next,
.flowcore-viewer:not(.groups) .earlier, .flowcore-viewer:not(.groups) .later,
.flowcore-viewer:not(.picks) .choose, .flowcore-viewer .head:empty { display: none; }
.flowcore-viewer .head {
  flex: none; align-self: center; max-width: 100%; margin-bottom: 2px; padding: 0 8px; box-sizing: border-box;
  border-left: 3px solid orange; font: 11px/16px sans-serif; color: #fff; pointer-events: none; }
.flowcore-viewer.full .head { font: 14px/22px sans-serif; }
.flowcore-viewer.full {
  position: fixed; inset: 0; width: 100vw; height: 100vh; margin: 0; padding: 0; border: 0; border-radius: 0; background: #111;
  pointer-events: auto; }
.flowcore-viewer.full select, .flowcore-viewer.full .bar button {
  height: 30px; min-width: 30px; font: 14px/30px sans-serif; padding: 0 10px; }
.flowcore-viewer .close { display: none; }
.flowcore-viewer.full .close { display: block; }
.flowcore-viewer.full .stage { margin-bottom: 40px; } /* for the tools */
.flowcore-viewer.full .open { display: none; }
</style>`;
