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

export const FULL_SCREEN = "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5";

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

/** Give a widget a value as if it had been typed: both renderers and all listeners are told. */
export function set(node, widget, value) {
  if (widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
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
export function wired(node, name) {
  return node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
}

/** Whether a click picks one of a node's pictures. */
export const picks = (node) => isOurs(node) && widgetOf(node, "pick");

/**
 * Add an element to a node that is no value of the workflow: neither saved, nor sent. The rules of its look lie in it, not
 * in the head of the page that all packs share; they name our classes only.
 */
export function addElement(node, name, element, height, look) {
  element.insertAdjacentHTML("beforeend", look);
  const widget = node.addDOMWidget(name, name, element, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => height() + 2 * MARGIN,
  });
  widget.serialize = false; // this one counts when a workflow is saved, the option when it is sent
  return widget;
}

export const AREA = "flowcore_area"; // name of the widget
const HIGH = 300; // pixels of an area with pictures
const LOW = 110; // and of one with a text alone

const LOOK = `<style>
.flowcore-area { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; }
</style>`;

/**
 * The one area of a node for what its runs show: pictures, and a text below them. It keeps its height, whatever is in it;
 * where a person makes the node taller, it grows with it.
 */
export function areaOf(node) {
  const there = widgetOf(node, AREA)?.element;
  if (there) return there;
  const height = picks(node) ? HIGH : LOW;
  const area = document.createElement("div");
  area.className = "flowcore-area";
  area.style.minHeight = `${height}px`;
  area.dataset.captureWheel = "true"; // what has the focus gets the wheel, which Nodes 2.0 otherwise gives to the canvas
  addElement(node, AREA, area, () => height, LOOK);
  const needed = node.computeSize()[1]; // Nodes 2.0 measures by itself
  if (!LiteGraph.vueNodesMode && node.size[1] < needed) node.setSize([node.size[0], needed]);
  return area;
}
