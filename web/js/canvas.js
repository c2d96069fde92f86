// What our widgets share: how they are attached to a node, write into other widgets, and speak the language of the frontend.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const MARGIN = 10; // that the classic canvas leaves around an element

/** Language to its texts, of all packs. */
export const texts = Promise.resolve(api.getCustomNodesI18n?.()).then((every) => every ?? {}, () => ({}));

/** The language of the frontend. */
export const language = () => app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";

/**
 * Say something: the text that a key stands for, with values filled in. English where there is no translation; where there
 * is no text at all, as on a server that runs since before an update, the name that it would hold.
 */
export async function say(key, values = {}) {
  const every = await texts;
  const text = every[language()]?.flowcore?.[key] ?? every.en?.flowcore?.[key] ?? values.name ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Name an element, in its tooltip and for screen readers. */
export async function label(element, key, values) {
  const text = await say(key, values);
  element.title = text;
  element.setAttribute("aria-label", text);
}

/** An icon of lines, drawn in a square of 24: not every font has the signs. */
export const icon = (path) => `<svg viewBox="0 0 24 24"><path d="${path}"/></svg>`;

/** Make an element with properties and children. */
export function make(kind, fields = {}, ...children) {
  const made = Object.assign(document.createElement(kind), fields);
  made.append(...children);
  return made;
}

const SMALL = 96; // pixels: such a picture is enlarged without smoothing

/** Show a picture in an image. */
export function sharpen(image, url) {
  image.onload = () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL);
  image.src = url;
}

export const FULL_SCREEN = "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5";

/** Post JSON to the server. */
export const post = (path, body, more = {}) =>
  api.fetchApi(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...more });

/** Whether a node is one of ours. */
export const isOurs = (node) => Boolean(node?.comfyClass?.startsWith("Flowcore"));

/** The widget of a name. */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Act after a method of a node or a widget, which need not have one. */
export function after(target, name, act) {
  const before = target[name];
  target[name] = function () {
    const result = before?.apply(this, arguments);
    act.apply(this, arguments);
    return result;
  };
}

/** Give a widget a value as if it had been typed: both renderers and all listeners are told, and the workflow has changed. */
export function set(node, widget, value) {
  if (widget.value === value) return;
  [stepped, widget.value] = [false, value];
  widget.callback?.(value, app.canvas, node);
  stepped = true;
  node.setDirtyCanvas?.(true, true);
  changed();
}

let unnoticed = false; // whether the workflow has changed since the frontend looked
let held = false; // whether a button of the mouse or a key is down
let stepped = true; // whether numbers change by a step: we do not write them, nor does a person type them

export const isStepped = () => stepped;

/**
 * Let the frontend look for what has changed, for its drafts and its undo: by itself it does so before our clicks are handled,
 * and never after a drag on our elements. All that one gesture writes is one step of undo.
 */
export function changed() {
  unnoticed = true;
  setTimeout(() => {
    if (held || !unnoticed) return;
    unnoticed = false;
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
  });
}

for (const [event, begins] of Object.entries({ pointerdown: true, keydown: true, pointerup: false, pointercancel: false, keyup: false })) {
  window.addEventListener(event, ({ target }) => {
    held = begins;
    if (begins) stepped = event !== "keydown" || !target.matches?.("input, textarea");
    if (unnoticed) changed();
  }, true);
}

/**
 * Draw a widget anew. Nodes 2.0 asks only once what a seed does after a run, and then shows and writes what it knows:
 * left out of one picture of the node, the widget asks again.
 */
export function redraw(node, widget) {
  if (!LiteGraph.vueNodesMode || widget.options.hidden) return;
  hide(node, [widget], () => true);
  requestAnimationFrame(() => requestAnimationFrame(() => hide(node, [widget], () => false)));
}

/** Let Nodes 2.0 read the options of all widgets again: it watches their list, and not the options. */
export function refresh(node) {
  node.widgets.reverse();
  node.widgets.reverse();
}

/** Hide those of some widgets that are to be hidden, and show the others. */
export function hide(node, widgets, isHidden) {
  const changed = widgets.filter((widget) => Boolean(widget.options.hidden) !== Boolean(isHidden(widget)));
  if (!changed.length) return;
  for (const widget of changed) widget.hidden = widget.options.hidden = !widget.options.hidden;
  refresh(node);
  node.setDirtyCanvas?.(true, true);
}

/** Whether a value comes along a wire, so that the widget does not count. */
export const wired = (node, name) => node.inputs?.some((input) => input.name === name && input.link != null) ?? false;

/** The left end of sliders that can follow the model; anything below 0 does. */
export const OWN = -0.1;

/** Whether a click picks one of a node's pictures. */
export const picks = (node) => isOurs(node) && widgetOf(node, "pick");

// Of all our elements: the area of a node, what has the focus, small pictures, and what is said where there is nothing to show.
const SHARED = `<style>
.flowcore-area { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; }
.flowcore-element:focus-visible, .flowcore-element :focus-visible { outline: 2px solid var(--p-primary-color, #4a90e2); }
.flowcore-element img.small { image-rendering: pixelated; }
.flowcore-view > p { display: none; margin: 0; padding: 16px; box-sizing: border-box; height: 100%; text-align: center;
  align-items: center; justify-content: center; font: 13px/1.4 sans-serif; color: var(--descrip-text, #999); }
.flowcore-view.empty > p { display: flex; }
.flowcore-view.empty > :not(p) { display: none; }
</style>`;

/**
 * Add an element to a node that is no value of the workflow: neither saved, nor sent. The rules of its look lie in it, not
 * in the head of the page that all packs share; they name our classes only. App mode, without a node, shows the title.
 */
export function addElement(node, name, element, height, look, title) {
  element.classList.add("flowcore-element");
  owners.set(element, [node, name]);
  element.insertAdjacentHTML("beforeend", SHARED + look);
  element.style.minHeight = `${height}px`;
  const widget = node.addDOMWidget(name, name, element, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => parseFloat(element.style.minHeight) + 2 * MARGIN,
  });
  if (title) say(title).then((text) => (widget.label = text));
  widget.serialize = false; // this one counts when a workflow is saved, the option when it is sent
  requestAnimationFrame(showElements);
  return widget;
}

const owners = new WeakMap(); // from elements to their nodes and the names of their widgets

/** Show the elements of the nodes that are there: Nodes 2.0 leaves those of nodes of their numbers that an undo or a tab replaces. */
function showElements() {
  for (const shown of document.querySelectorAll(".flowcore-element")) {
    const [before, name] = owners.get(shown);
    if (before.graph?.getNodeById(before.id) === before) continue;
    const node = app.canvas.graph.getNodeById(before.id), element = node && widgetOf(node, name)?.element;
    if (element) shown.replaceWith(element);
  }
}

export const AREA = "flowcore_area"; // name of the widget
const HIGH = 300; // pixels of an area with pictures
const LOW = 110; // and of one with a text alone

/**
 * The one area of a node for what its runs show: pictures, and a text below them. It keeps its height, whatever is in it;
 * where a person makes the node taller, it grows with it.
 */
export function areaOf(node) {
  const there = widgetOf(node, AREA)?.element;
  if (there) return there;
  const area = make("div", { className: "flowcore-area" });
  area.dataset.captureWheel = "true"; // what has the focus gets the wheel, which Nodes 2.0 otherwise gives to the canvas
  addElement(node, AREA, area, picks(node) ? HIGH : LOW, "");
  grow(node);
  return area;
}

/** Let the area of a node be at least so many pixels higher than it is anyway. */
export function heighten(node, more) {
  const area = areaOf(node);
  area.style.setProperty("--more", `${more}px`);
  area.style.minHeight = `${(picks(node) ? HIGH : LOW) + more}px`;
  grow(node);
}

/** Make a node as large as its elements need. */
export function grow(node, width = 0) {
  const height = LiteGraph.vueNodesMode ? 0 : node.computeSize()[1]; // Nodes 2.0 measures by itself
  if (node.size[0] < width || node.size[1] < height)
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
}
