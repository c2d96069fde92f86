// The picture of Flow Align Face: it shows the detected eyes, and clicks on it change `left_eye` and `right_eye`.
import { addElement, patchAfter, consume, makeHint, isOurs, setLabel, make, setValue, widgetOf } from "./canvas.js";
import { app } from "./frontend.js";
import { onUpstreamChoice, pictureAt, pictureWidget } from "./picture.js";
import { onResult } from "./runs.js";

const parse = (text) => (text.match(/[\d.]+\D+[\d.]+/g) ?? []).map((point) => point.match(/[\d.]+/g).map(Number));
const format = (points) => points.map(([x, y]) => `${x.toFixed(1)}, ${y.toFixed(1)}`).join("; ");

app.registerExtension({
  name: "flowcore.eyes",
  nodeCreated(node) {
    const fields = ["left_eye", "right_eye"].map((name) => widgetOf(node, name));
    if (isOurs(node) && fields.every(Boolean)) node.flowcoreEyes = new Eyes(node, fields);
  },
});

onResult((node, { eyes }) => node.flowcoreEyes?.setDetected(eyes));

class Eyes {
  constructor(node, fields) {
    this.node = node;
    this.fields = fields;
    this.detected = [[], []]; // left and right eyes of the last run, which are shown if no eyes are marked
    this.dragged = undefined; // side and index of a dot
    this.frame = make("div", { className: "flowcore-eyes flowcore-view", innerHTML: "<svg><image/><g/></svg>" });
    const svg = (this.svg = this.frame.firstChild);
    this.frame.prepend(makeHint("unmarked"));
    [this.image, this.dots] = svg.children;
    this.picture = Object.assign(new Image(), { onload: () => this.draw() });
    Object.assign(svg, {
      onpointerdown: (event) => this.press(event),
      onpointermove: (event) => this.move(event),
      onpointerup: () => this.release(),
      oncontextmenu: consume,
    });
    this.frame.onpointerenter = () => this.updatePicture(); // there is no event when another node gets a picture
    for (const field of fields) patchAfter(field, "callback", () => this.draw());
    onUpstreamChoice(node, "image", pictureWidget, (_, hasChanged) => {
      if (hasChanged) { // the eyes were those of the picture before
        this.detected = [[], []];
        this.setEyes(this.detected);
      }
      this.updatePicture();
    });
    setLabel(svg, "mark");
    addElement(node, "flowcore_eyes", this.frame, 200, STYLE_SHEET, "eyes");
  }

  /** Show the eyes that a run has detected, if it did. */
  setDetected(eyes) {
    if (eyes) this.detected = eyes;
    setTimeout(() => this.updatePicture());
  }

  /** The marked eyes, else a copy of those detected: a list of points for each side. */
  eyes() {
    const marked = this.fields.map((field) => parse(String(field.value ?? "")));
    return marked.flat().length ? marked : structuredClone(this.detected);
  }

  setEyes(sides) {
    this.fields.forEach((field, side) => setValue(this.node, field, format(sides[side])));
  }

  /** Show the picture at the input, and the eyes on it. */
  updatePicture() {
    const address = pictureAt(this.node, "image");
    this.frame.classList.toggle("empty", !address);
    if (address && this.image.getAttribute("href") !== address) {
      this.picture.src = address;
      this.image.setAttribute("href", address);
    }
    this.draw();
  }

  draw() {
    const { naturalWidth: width, naturalHeight: height } = this.picture;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const radius = Math.max(width, height) / 90;
    const circle = ([x, y], side, k) => `<circle cx="${x}" cy="${y}" r="${radius}" data-eye="${side} ${k}"/>`;
    this.dots.innerHTML = this.eyes().flatMap((points, side) => points.map((point, k) => circle(point, side, k))).join("");
  }

  press(event) {
    consume(event);
    if (event.button === 2) this.setEyes([[], []]);
    if (event.button) return;
    const sides = this.eyes();
    const side = sides[0].length > sides[1].length ? 1 : 0; // complete the last pair
    const dot = event.target.dataset.eye?.split(" ").map(Number);
    this.dragged = dot ?? [side, sides[side].length];
    this.moved = !dot; // a new eye is drawn at once
    this.svg.setPointerCapture(event.pointerId);
    this.move(event);
  }

  move({ clientX, clientY, movementX, movementY }) {
    this.moved ||= Boolean(movementX || movementY);
    if (!this.dragged || !this.moved) return;
    const { naturalWidth, naturalHeight } = this.picture;
    const { left, top, width, height } = this.svg.getBoundingClientRect();
    const scale = Math.min(width / naturalWidth, height / naturalHeight);
    const within = (fromCenter, side) => Math.min(side, Math.max(0, fromCenter / scale + side / 2));
    const sides = this.eyes(), [side, k] = this.dragged;
    sides[side][k] = [within(clientX - left - width / 2, naturalWidth), within(clientY - top - height / 2, naturalHeight)];
    this.setEyes(sides);
  }

  /** End a drag; a click without one removes the face of its dot. */
  release() {
    const dot = this.dragged;
    this.dragged = undefined;
    if (dot && !this.moved) this.setEyes(this.eyes().map((points) => points.toSpliced(dot[1], 1)));
  }
}

// --- styles

const STYLE_SHEET = `<style>
.flowcore-eyes { position: relative; border-radius: 6px; background: var(--comfy-input-bg, #222); }
.flowcore-eyes svg { position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; touch-action: none; }
.flowcore-eyes circle { fill: #0003; stroke: #fff; stroke-width: 2; vector-effect: non-scaling-stroke; filter: drop-shadow(0 0 1px #000); }
.flowcore-eyes p { position: absolute; inset: 0; }
</style>`;
