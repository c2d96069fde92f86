// Two pictures over each other: a line wipes between them, the wheel zooms, a drag pans, and it opens full screen. It
// knows nothing of nodes.
import { FULL_SCREEN, icon, label, make, say } from "./canvas.js";

const NEAR = 14; // pixels on the screen around the line in which a drag takes hold of it
const STILL = 4; // pixels that a click may move
const CLOSEST = 32; // pixels on the screen per pixel of the picture
const BLOCKS = 4; // from so many on, pixels are shown as squares

const LOOK = `<style>
.flowcore-viewer {
  position: relative; overflow: hidden; border-radius: 6px; background: #161616; touch-action: none; user-select: none;
  outline-offset: -2px; cursor: zoom-in; min-height: 0; box-sizing: border-box; }
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
.flowcore-viewer .bar { position: absolute; left: 6px; right: 6px; display: flex; gap: 4px; align-items: center; pointer-events: none; }
.flowcore-viewer .bar.names { top: 6px; justify-content: space-between; }
.flowcore-viewer .bar.tools { bottom: 6px; justify-content: center; opacity: 0; transition: opacity 0.15s; }
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
  position: absolute; left: 50%; top: 32px; transform: translateX(-50%); width: max-content; max-width: 90%; padding: 2px 8px;
  box-sizing: border-box; border-left: 3px solid orange; border-radius: 5px; font: 11px/16px sans-serif; color: #fff;
  background: rgba(0, 0, 0, 0.75); pointer-events: none; }
.flowcore-viewer.full .head { top: 44px; font: 14px/22px sans-serif; }
.flowcore-viewer.full {
  position: fixed; inset: 0; width: 100vw; height: 100vh; margin: 0; padding: 0; border: 0; border-radius: 0; background: #111;
  pointer-events: auto; }
.flowcore-viewer.full select, .flowcore-viewer.full .bar button {
  height: 30px; min-width: 30px; font: 14px/30px sans-serif; padding: 0 10px; }
.flowcore-viewer .close { display: none; }
.flowcore-viewer.full .close { display: block; }
.flowcore-viewer.full .open { display: none; }
</style>`;

/**
 * A viewer of pictures `{name, url, source, group, head, frame}`: `source` is the URL of what a picture was made of, or missing;
 * arrows stay in a `group`, `head` stands over a picture, and a `frame` cannot be picked.
 */
export class Viewer {
  /** Called with the place of a picture: `onPick` when it is picked here, `onShow` when it is shown, `onSave` to save it. */
  constructor(onPick, onShow, onSave) {
    this.pictures = [];
    this.left = null; // "source", the place of a picture, or null: nothing is compared
    this.right = 0;
    this.picked = -1;
    this.wipe = 0.5;
    this.alone = false; // the left one, while the space bar is held
    Object.assign(this, { onPick, onShow, onSave });
    this.reset();
    this.build();
  }

  build() {
    const element = (this.element = make("div", { className: "flowcore-viewer flowcore-view empty", tabIndex: 0, role: "application" }));
    this.layers = ["before", "after"].map((className) => {
      const image = make("img", { alt: "", draggable: false, onload: () => this.place() });
      return make("div", { className }, image);
    });
    this.layers[1].append((this.over = make("img", { alt: "", draggable: false, hidden: true })));
    this.line = make("hr");
    const names = make("div", { className: "bar names" });
    const tools = make("div", { className: "bar tools" });
    this.choices = ["left", "right"].map((side) => {
      const choice = make("select");
      label(choice, side);
      choice.addEventListener("change", () => {
        this[side] = choice.value === "" ? null : choice.value === "source" ? "source" : Number(choice.value);
        this.update();
        element.focus({ preventScroll: true });
      });
      names.append(choice);
      return choice;
    });
    const tool = (key, sign, act) => {
      const onclick = () => (act(), element.focus({ preventScroll: true }));
      const made = make("button", { type: "button", innerHTML: sign, className: key, onclick });
      label(made, key);
      tools.append(made);
      return made;
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
    say("keys").then((text) => element.setAttribute("aria-label", text));
    const hint = make("p");
    say("unrun").then((text) => (hint.textContent = text));
    this.head = make("output", { className: "head" });
    element.append(...this.layers, this.line, names, this.head, tools, hint);
    element.insertAdjacentHTML("beforeend", LOOK);
    this.listen();
    new ResizeObserver(() => this.place()).observe(element);
  }

  /** Show other pictures; what was compared and where it was seen stays, as far as there is such a picture. */
  show(pictures, right = this.right) {
    const hadSource = this.pictures.some((picture) => picture.source);
    this.pictures = pictures;
    this.right = Math.min(Math.max(0, right), pictures.length - 1);
    const hasSource = pictures.some((picture) => picture.source);
    const begins = this.left === null && !hadSource; // where there was none to choose, as in a run before a reload
    if (begins || (this.left === "source" && !hasSource) || this.left >= pictures.length) this.left = hasSource ? "source" : null;
    this.update();
  }

  /** Mark the picture that is picked, by its place; -1 for none. */
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
    this.lay("");
    this.compared = Boolean(before);
    const every = this.pictures.map((picture, place) => new Option(picture.name, place));
    const extra = [new Option("–", ""), ...(after.source ? [new Option(after.sourceName, "source")] : [])];
    this.choices[0].replaceChildren(...extra, ...every);
    this.choices[0].value = String(this.left ?? "");
    this.choices[1].replaceChildren(...every.map((made) => made.cloneNode(true)));
    this.choices[1].value = String(this.right);
    const rows = this.rows(), { length } = this.pictures;
    const has = { several: rows.some((row) => row.includes(this.right) && row[1]), groups: rows[1], picks: length > 1 && !after.frame };
    for (const [name, there] of Object.entries(has)) this.element.classList.toggle(name, Boolean(there));
    this.say(after.head);
    this.mark(this.picked);
    this.place();
  }

  /** Lay a picture, or a part of one in a transparent one, over the right one until another is shown; "": none. */
  lay(url) {
    this.over.hidden = !url;
    if (url) this.over.src = url;
  }

  /** The place in the middle of the view, in shares of the picture's sides. */
  middle() {
    return this.size().map((side, k) => 0.5 - [this.x, this.y][k] / (side * this.base() * this.zoom));
  }

  /** Say something over the picture, until another one is shown. */
  say(text = "") {
    this.head.textContent = text;
  }

  /** The places of the pictures of every group. */
  rows() {
    return [...Map.groupBy(this.pictures.keys(), (place) => this.pictures[place].group).values()];
  }

  /** Show the next picture of this group, or that at the same place in another group. */
  step(by, down = 0) {
    const rows = this.rows(), at = rows.findIndex((row) => row.includes(this.right));
    const row = rows.at((at + down) % rows.length), place = rows[at].indexOf(this.right) + by;
    this.right = row.at(down ? Math.min(place, row.length - 1) : place % row.length);
    this.update();
    this.onShow(this.right);
  }

  // --- where the picture lies -------------------------------------------------------------------------------------------

  reset() {
    this.zoom = 1; // times the scale at which all is seen
    this.x = this.y = 0; // of the picture's middle from the view's, in pixels of the view
  }

  fit() {
    this.reset();
    this.place();
  }

  /** A pixel of the picture on a pixel of the screen. */
  actual() {
    const { width, height } = this.element.getBoundingClientRect();
    this.zoomTo(1 / (this.base() * this.shrunk() * devicePixelRatio), width / 2, height / 2);
  }

  /** Pixels of the screen per pixel of the view: the canvas of nodes is zoomed, too. */
  shrunk() {
    return this.element.getBoundingClientRect().width / this.element.offsetWidth || 1;
  }

  size() {
    const image = this.layers[1].firstElementChild;
    return [image.naturalWidth || 1, image.naturalHeight || 1];
  }

  base() {
    const [wide, high] = this.size();
    return Math.min(this.element.clientWidth / wide, this.element.clientHeight / high) || 1;
  }

  /** Zoom, and keep what is seen at a place (in pixels of the screen from the corner) where it is. */
  zoomTo(zoom, left, top) {
    const most = Math.max(1, CLOSEST / (this.base() * this.shrunk()));
    const next = Math.min(most, Math.max(1, zoom));
    const x = left / this.shrunk() - this.element.clientWidth / 2;
    const y = top / this.shrunk() - this.element.clientHeight / 2;
    this.x = x - ((x - this.x) * next) / this.zoom;
    this.y = y - ((y - this.y) * next) / this.zoom;
    this.zoom = next;
    this.place();
  }

  place() {
    const { clientWidth: width, clientHeight: height } = this.element;
    const [wide, high] = this.size();
    const scale = this.base() * this.zoom;
    const [w, h] = [wide * scale, high * scale];
    const within = (offset, picture, view) => {
      const most = Math.max(0, (picture - view) / 2);
      return Math.min(most, Math.max(-most, offset));
    };
    this.x = within(this.x, w, width);
    this.y = within(this.y, h, height);
    for (const image of this.layers.flatMap((layer) => [...layer.children])) {
      const [left, top] = [(width - w) / 2 + this.x, (height - h) / 2 + this.y];
      Object.assign(image.style, { left: `${left}px`, top: `${top}px`, width: `${w}px`, height: `${h}px` });
      // A smaller source is seen enlarged the ordinary way.
      image.classList.toggle("blocks", scale * this.shrunk() >= BLOCKS && image.naturalWidth >= wide);
    }
    const [left, right] = [Math.max(0, (width - w) / 2), Math.min(width, (width + w) / 2)];
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
      const { left, top } = element.getBoundingClientRect();
      return [event.clientX - left, event.clientY - top];
    };
    const near = (event) => this.compared && Math.abs(at(event)[0] - this.bounds[2] * this.shrunk()) < NEAR;
    let drag = null;
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      event.stopPropagation(); // the canvas of nodes stays
      this.zoomTo(this.zoom * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event));
    });
    element.addEventListener("pointerdown", (event) => {
      event.stopPropagation(); // not a drag of the node
      if (event.button !== 0 || event.target.closest("select, button")) return;
      event.preventDefault();
      element.focus({ preventScroll: true });
      element.setPointerCapture(event.pointerId);
      const wipes = this.compared && (near(event) || this.zoom === 1);
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
        this.wipe = Math.min(1, Math.max(0, (at(event)[0] / this.shrunk() - left) / (right - left || 1)));
      } else {
        element.classList.add("pan");
        this.x += (event.clientX - drag.last[0]) / this.shrunk();
        this.y += (event.clientY - drag.last[1]) / this.shrunk();
      }
      drag.last = [event.clientX, event.clientY];
      this.place();
    });
    const end = (event) => {
      element.classList.remove("pan");
      const clicked = drag && !drag.moved && event.type === "pointerup";
      drag = null;
      if (clicked && !this.full) this.open();
    };
    for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, end);
    const fill = () => (element.classList.toggle("full", element.matches(":fullscreen, :popover-open")), this.fit());
    for (const name of ["fullscreenchange", "toggle"]) element.addEventListener(name, fill);
    element.addEventListener("dblclick", (event) => event.stopPropagation());
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener("keyup", ({ key }) => key === " " && this.alone && ((this.alone = false), this.place()));
  }

  /** Act on a key, unless a modifier or a menu of choices takes it. */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("select")) return;
    if (event.target.closest?.("button") && (event.key === "Enter" || event.key === " ")) return;
    const { width, height } = this.element.getBoundingClientRect();
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
      " ": () => ((this.alone = this.compared), this.place()),
    };
    const act = acts[event.key === "=" ? "+" : event.key];
    if (act || this.full) event.stopPropagation(); // the canvas below has keys of its own
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Another one on the left: the source and all pictures in turn. */
  stepLeft(by) {
    const turn = [...this.choices[0].options].map((choice) => choice.value).filter((value) => value !== "");
    const place = turn.indexOf(String(this.left ?? ""));
    const next = turn[(place + by + turn.length) % turn.length];
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
    // Where it is refused, as in some embedded pages, the viewer fills the window.
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
