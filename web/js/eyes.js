// The picture of Flow Align Face shows the eyes that were found, and takes clicks, which `left_eye` and `right_eye` hold.
import { app } from "../../../scripts/app.js";
import { addElement, after, isOurs, label, make, say, set, widgetOf } from "./canvas.js";
import { choiceOf, onChoice, pictureAt } from "./picture.js";
import { onResult } from "./runs.js";

const LOOK = `<style>
.flowcore-eyes { position: relative; border-radius: 6px; background: var(--comfy-input-bg, #222); }
.flowcore-eyes svg { position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; touch-action: none; }
.flowcore-eyes circle { fill: #0003; stroke: #fff; stroke-width: 2; vector-effect: non-scaling-stroke; filter: drop-shadow(0 0 1px #000); }
.flowcore-eyes p { position: absolute; inset: 0; }
</style>`;

const parse = (text) => (text.match(/[\d.]+\D+[\d.]+/g) ?? []).map((point) => point.match(/[\d.]+/g).map(Number));
const format = (points) => points.map(([x, y]) => `${x.toFixed(1)}, ${y.toFixed(1)}`).join("; ");

onResult((node, { eyes }) => node.flowcoreEyes?.(eyes));

app.registerExtension({
  name: "flowcore.eyes",
  nodeCreated(node) {
    const fields = ["left_eye", "right_eye"].map((name) => widgetOf(node, name));
    if (!isOurs(node) || fields.includes(undefined)) return;
    const frame = make("div", { className: "flowcore-eyes flowcore-view", innerHTML: "<p></p><svg><image/><g/></svg>" });
    const [hint, svg] = frame.children, [shown, dots] = svg.children;
    const picture = Object.assign(new Image(), { onload: () => draw() });
    let held, moved, found = [[], []]; // side and place of the dot that is dragged; what the last run found, shown where nothing is marked
    const read = (marked = fields.map((field) => parse(String(field.value ?? "")))) => (marked.flat().length ? marked : structuredClone(found));
    const write = (sides) => fields.forEach((field, side) => set(node, field, format(sides[side])));
    const draw = () => {
      const { naturalWidth: wide, naturalHeight: high } = picture;
      svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
      const dot = ([x, y], side, at) => `<circle cx="${x}" cy="${y}" r="${Math.max(wide, high) / 90}" data-eye="${side} ${at}"/>`;
      dots.innerHTML = read().flatMap((points, side) => points.map((point, at) => dot(point, side, at))).join("");
    };
    const follow = () => {
      const address = pictureAt(node, "image");
      frame.classList.toggle("empty", !address);
      if (address && shown.getAttribute("href") !== address) shown.setAttribute("href", (picture.src = address));
      draw();
    };
    const move = ({ clientX, clientY, movementX, movementY }) => {
      if (!held || !(moved ||= movementX || movementY)) return;
      const { naturalWidth: wide, naturalHeight: high } = picture, sides = read();
      const { left, top, width, height } = svg.getBoundingClientRect(), scale = Math.min(width / wide, height / high);
      const within = (middle, side) => Math.min(side, Math.max(0, middle / scale + side / 2));
      sides[held[0]][held[1]] = [within(clientX - left - width / 2, wide), within(clientY - top - height / 2, high)];
      write(sides);
    };
    const quiet = (event) => (event.stopPropagation(), event.preventDefault()); // no drag of the node, nor its menu
    const press = (event) => {
      quiet(event);
      if (event.button) return event.button === 2 && write([[], []]);
      const sides = read(), next = Number(sides[0].length > sides[1].length), dot = event.target.dataset.eye?.split(" ");
      [held, moved] = [dot ?? [next, sides[next].length], !dot];
      svg.setPointerCapture(event.pointerId);
      move(event);
    };
    const release = () => (held && !moved && write(read().map((points) => points.toSpliced(held[1], 1))), (held = undefined)); // a face goes
    Object.assign(svg, { onpointerdown: press, onpointermove: move, onpointerup: release, oncontextmenu: quiet });
    frame.onpointerenter = follow; // there is no event for a picture from elsewhere
    for (const field of fields) after(field, "callback", draw);
    node.flowcoreEyes = (eyes = found) => ((found = eyes), setTimeout(follow));
    onChoice(node, "image", choiceOf, (_, another) => {
      if (another) (found = [[], []]), write(found); // they were of the picture before
      follow();
    });
    label(svg, "mark"), say("unmarked").then((text) => (hint.textContent = text));
    addElement(node, "flowcore_eyes", frame, 200, LOOK, "eyes");
  },
});
