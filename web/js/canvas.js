// What our widgets share: how they hang on a node, write into other widgets, and speak the language of the frontend.
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

/** Give a widget a value as if it had been typed: both renderers and whoever listens hear of it. */
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
  if (!LiteGraph.vueNodesMode) return;
  const hidden = widget.options.hidden;
  const turn = (value) => {
    widget.options.hidden = value;
    refresh(node);
  };
  turn(true);
  requestAnimationFrame(() => requestAnimationFrame(() => turn(hidden)));
}

/** Let Nodes 2.0 read the options of all widgets again: it watches their list, and not the options. */
export function refresh(node) {
  node.widgets.reverse();
  node.widgets.reverse();
}

/** Whether a value comes along a wire, so that the widget does not count. */
export function wired(node, name) {
  return node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
}

/**
 * Add an element to a node that is no value of the workflow: neither saved, nor sent. The rules of its look lie in it, not
 * in the head of the page that all packs share; they name our classes only.
 */
export function addElement(node, name, element, height, look) {
  element.append(look.cloneNode(true));
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
