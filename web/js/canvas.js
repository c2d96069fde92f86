// What our widgets share: elements on nodes, values of other widgets, and texts in the language of the frontend.
import { api, app } from "./frontend.js";

const MARGIN = 10; // that the classic canvas leaves around an element

/** The texts of all packs, by language. */
export const texts = Promise.resolve(api.getCustomNodesI18n?.()).then((every) => every ?? {}, () => ({}));

/** The same, as soon as they are there. */
export let loadedTexts = {};
texts.then((every) => (loadedTexts = every));

/** The language of the frontend. */
export const language = () => app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";

/**
 * The text of a key, with values filled in; in English if there is no translation. If there is no text at all, because the
 * server was started before an update, the value `name`.
 */
export async function translate(key, values = {}) {
  const every = await texts;
  const text = every[language()]?.flowcore?.[key] ?? every.en?.flowcore?.[key] ?? values.name ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Name an element, in its tooltip and for screen readers. */
export async function setLabel(element, key, values) {
  const text = await translate(key, values);
  element.title = text;
  element.setAttribute("aria-label", text);
}

/** An icon of lines in a square of 24, for signs that not every font has. */
export const icon = (path) => `<svg viewBox="0 0 24 24"><path d="${path}"/></svg>`;

/** Make an element with properties and children. */
export function make(kind, fields = {}, ...children) {
  const made = Object.assign(document.createElement(kind), fields);
  made.append(...children);
  return made;
}

/** The hint that an empty view shows; see SHARED_STYLE_SHEET. */
export function makeHint(key) {
  const element = make("p", { dir: "auto" });
  translate(key).then((text) => (element.textContent = text));
  return element;
}

/** Keep an event from dragging the node, opening its menu, or acting as a shortcut of the page. */
export function consume(event) {
  event.stopPropagation();
  event.preventDefault();
}

const SMALL = 96; // pixels up to which a picture is enlarged without smoothing

/** Set the picture of an image element; a small one is shown with sharp pixels. */
export function sharpen(image, url) {
  image.onload = () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL);
  image.src = url;
}

export const FULL_SCREEN = "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5";

/** Post JSON to the server. */
export const post = (path, body, more = {}) =>
  api.fetchApi(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...more });

/** The node that an element of Nodes 2.0 is on. */
export const nodeAround = (element) => app.canvas.graph.getNodeById(element.closest("[data-node-id]")?.dataset.nodeId);

/** Whether a node is one of ours. */
export const isOurs = (node) => Boolean(node?.comfyClass?.startsWith("Flowcore"));

/** The widget of a name. */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Patch a method of a node or widget, which need not have it yet: call `act` after every call of it, too, for good. */
export function patchAfter(target, name, act) {
  const before = target[name];
  target[name] = function () {
    const result = before?.apply(this, arguments);
    act.apply(this, arguments);
    return result;
  };
}

/** Set the value of a widget as if it had been typed: renderers and listeners are told, and the workflow has changed. */
export function setValue(node, widget, value) {
  if (widget.value === value) return;
  stepped = false;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  stepped = true;
  node.setDirtyCanvas?.(true, true);
  requestSnapshot();
}

let unnoticed = false; // whether the workflow has changed since the frontend's last snapshot
let pressed = false; // whether a mouse button or a key is down, so that a gesture goes on
let stepped = true; // whether numbers change by arrows or after a run now, that is, unless we set one or a person types one

/** Whether a number changes by the arrows of its widget or after a run. */
export const isStepped = () => stepped;

/**
 * Let the frontend take a snapshot for its drafts and its undo. By itself, it takes one before our click handlers run, and none
 * after a drag on our elements. Everything that one gesture changes is one step of undo.
 */
export function requestSnapshot() {
  unnoticed = true;
  setTimeout(() => {
    if (pressed || !unnoticed) return;
    unnoticed = false;
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
  });
}

for (const [event, isPress] of Object.entries({ pointerdown: true, keydown: true, pointerup: false, pointercancel: false, keyup: false })) {
  window.addEventListener(event, ({ target }) => {
    pressed = isPress;
    if (isPress) stepped = event !== "keydown" || !target.matches?.("input, textarea");
    if (unnoticed) requestSnapshot();
  }, true);
}

/**
 * Draw a widget again. Nodes 2.0 reads only once what a seed does after a run; a widget that was hidden for a frame reads it
 * again.
 */
export function redraw(node, widget) {
  if (!LiteGraph.vueNodesMode || widget.options.hidden) return;
  setHidden(node, [widget], () => true);
  requestAnimationFrame(() => requestAnimationFrame(() => setHidden(node, [widget], () => false)));
}

/** Make Nodes 2.0 read the options of all widgets again: it watches their list, not the options. */
export function refresh(node) {
  node.widgets.reverse();
  node.widgets.reverse();
}

/** Hide those of some widgets for which `isHidden` is true, and show the others. */
export function setHidden(node, widgets, isHidden) {
  const toggled = widgets.filter((widget) => Boolean(widget.options.hidden) !== Boolean(isHidden(widget)));
  if (!toggled.length) return;
  for (const widget of toggled) widget.hidden = widget.options.hidden = !widget.options.hidden;
  refresh(node);
  node.setDirtyCanvas?.(true, true);
}

/** Whether an input is connected, so that its widget has no effect. */
export const wired = (node, name) => node.inputs?.some((input) => input.name === name && input.link != null) ?? false;

/** The value of sliders that follow the model, as any value below 0 does; see nodes/widgets.py. */
export const FROM_MODEL = -0.1;

/** The type of an input and its options, as the server describes them. */
export function inputSpec(node, name) {
  const { required, optional } = node?.constructor.nodeData?.input ?? {};
  return required?.[name] ?? optional?.[name] ?? [];
}

/** Whether a number of a node can follow the model. */
export const canFollowModel = (node, name) => inputSpec(node, name)[1]?.min === FROM_MODEL;

/** Whether one of a node's pictures can be picked. */
export const hasPick = (node) => isOurs(node) && widgetOf(node, "pick");

// For all our elements: the area of a node, the focus, small pictures, and the hint of an empty view.
const SHARED_STYLE_SHEET = `<style>
.flowcore-area { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; }
.flowcore-element:focus-visible, .flowcore-element :focus-visible { outline: 2px solid var(--p-primary-color, #4a90e2); }
.flowcore-element img.small { image-rendering: pixelated; }
.flowcore-view > p { display: none; margin: 0; padding: 16px; box-sizing: border-box; height: 100%; text-align: center;
  align-items: center; justify-content: center; font: 13px/1.4 sans-serif; color: var(--descrip-text, #999); }
.flowcore-view.empty > p { display: flex; }
.flowcore-view.empty > :not(p) { display: none; }
</style>`;

/**
 * Add an element to a node, which is neither saved with the workflow nor sent. Its styles are inside it, not in the head of the
 * page, which all packs share. App mode shows the title.
 */
export function addElement(node, name, element, height, styleSheet, title) {
  element.classList.add("flowcore-element");
  owners.set(element, [node, name]);
  element.insertAdjacentHTML("beforeend", SHARED_STYLE_SHEET + styleSheet);
  element.dataset.height = height;
  element.style.minHeight = `${height}px`;
  const widget = node.addDOMWidget(name, name, element, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => parseFloat(element.style.minHeight) + 2 * MARGIN,
  });
  if (title) translate(title).then((text) => (widget.label = text));
  widget.serialize = false; // for saving; the option above is for sending
  requestAnimationFrame(replaceStaleElements);
  return widget;
}

const owners = new WeakMap(); // from elements to their nodes and the names of their widgets

/** After an undo or a switch of tabs, replace the elements of old nodes, which Nodes 2.0 keeps, by those of new ones with their ids. */
function replaceStaleElements() {
  for (const old of document.querySelectorAll(".flowcore-element")) {
    const [owner, name] = owners.get(old);
    if (owner.graph?.getNodeById(owner.id) === owner) continue;
    const node = app.canvas.graph.getNodeById(owner.id), element = node && widgetOf(node, name)?.element;
    if (element) old.replaceWith(element);
  }
}

export const AREA = "flowcore_area"; // name of the widget
const HIGH = 300; // pixels of an area with pictures
const LOW = 110; // pixels of one with only text

/** The area of a node, if it has one; a brush has it below its board. */
export const existingAreaOf = (node) => node.flowcoreBrush?.area ?? widgetOf(node, AREA)?.element;

/** The area of a node that shows the pictures of its runs, and a text below them. It grows only with the node. */
export function areaOf(node) {
  const existing = existingAreaOf(node);
  if (existing) return existing;
  const area = make("div", { className: "flowcore-area" });
  area.dataset.captureWheel = "true"; // so that the focused element gets the wheel, not the canvas of Nodes 2.0
  addElement(node, AREA, area, hasPick(node) ? HIGH : LOW, "");
  fitNode(node);
  return area;
}

/** Make the area of a node this many pixels higher than usual, and the node larger if it has to be. */
export function setExtraHeight(node, more) {
  const area = areaOf(node), element = area.closest(".flowcore-element");
  area.style.setProperty("--more", `${more}px`);
  element.style.minHeight = `${Number(element.dataset.height) + more}px`;
  fitNode(node);
}

/** Make a node as large as its elements need. */
export function fitNode(node, width = 0) {
  const height = LiteGraph.vueNodesMode ? 0 : node.computeSize()[1]; // Nodes 2.0 measures it
  if (node.size[0] < width || node.size[1] < height)
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
}
