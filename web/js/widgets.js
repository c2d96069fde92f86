// How our nodes show their widgets: numbers that the model decides, `outside` only with a mask, and advanced inputs folded.
import {
  AREA, FROM_MODEL, canFollowModel, fitNode, hasPick, inputSpec, isOurs, isStepped, nodeAround, patchAfter, post, refresh, requestSnapshot,
  setHidden, setValue, translate, widgetOf, wired,
} from "./canvas.js";
import { app, foldAdvanced } from "./frontend.js";
import { translateMessage } from "./messages.js";
import { onModel, usualModel } from "./models.js";
import { fileWidget, imageInput, onUpstreamChoice, originOf } from "./picture.js";
import { onResult } from "./runs.js";

const ZERO = { factor: "scale", pick: "all" }; // widgets whose 0 has a meaning of its own: keys of the texts for it

const ALL_LOOKS = "all looks"; // in the menu of looks; see nodes/upscaling.py
const DECISIVE = ["look", "temperatures"]; // widgets that change what the others follow
const PAUSE = 100; // ms without another change before the server is asked

const resets = new WeakMap(); // from a node to a function that resets its slider of a name
const modelListeners = new WeakMap(); // from a node to a function that gets the names of the models of its last run
onResult((node, { flowcore_models: models }) => models && modelListeners.get(node)?.(models));

/** Show the number that a run would use in every widget that follows the model; files and prompts get FROM_MODEL or 0. */
function followModel(node) {
  const numbers = node.widgets.filter(({ name }) => canFollowModel(node, name) || name in ZERO);
  const sentinel = ({ name }) => (name in ZERO ? 0 : FROM_MODEL);
  const shownByUs = new Map(); // from a widget that follows to the value that we show in it; any other is a person's
  const follows = (widget) => shownByUs.get(widget) === widget.value;
  const labels = new Map(numbers.map((widget) => [widget, [widget.label ?? widget.name]])); // and the label while it follows
  let stated = {}; // by widget name: what the server says that a run would use
  let model, models = []; // in the menu, and those of the last run
  const input = imageInput(node);

  function questionOf() {
    const values = {};
    for (const widget of numbers) if (!follows(widget)) values[widget.name] = widget.value;
    for (const name of DECISIVE) if (widgetOf(node, name)) values[name] = widgetOf(node, name).value;
    const wires = (node.inputs ?? []).filter(({ link }) => link != null).map(({ name }) => name);
    const picture = input && fileWidget(originOf(node, input))?.value;
    return { node: node.comfyClass, model, models, picture, values, wired: wires };
  }

  let latest = 0;
  async function ask() {
    const question = ++latest, isLatest = () => question === latest;
    await new Promise((done) => setTimeout(done, PAUSE));
    if (!isLatest() || !(model || models.length)) return;
    const answer = await post("/flowcore/numbers", questionOf()).then((each) => each.json()).catch(() => ({}));
    if (!isLatest()) return;
    stated = answer;
    showStated();
  }

  function updateFollowing(widget) {
    if (widget.value < 0 || (widget.value === 0 && widget.name in ZERO)) shownByUs.set(widget, widget.value);
    else shownByUs.delete(widget);
  }

  function showStated() {
    const state = () => JSON.stringify(numbers.map(({ label, value, options }) => [label, value, options.min]));
    const before = state();
    for (const widget of numbers) {
      const following = follows(widget);
      if (following) {
        const number = stated[widget.name] ?? sentinel(widget);
        if (number < 0) beginBelowZero(widget); // or the frontend would show 0
        widget.value = number;
        shownByUs.set(widget, widget.value);
      }
      beginAtZero(widget);
      widget.label = labels.get(widget)[Number(following)] ?? widget.label;
    }
    hideWhereLooksDiffer();
    if (state() === before) return;
    refresh(node);
    node.setDirtyCanvas?.(true, true);
  }

  function hideWhereLooksDiffer() {
    const look = widgetOf(node, "look");
    if (look) setHidden(node, numbers, (widget) => look.value === ALL_LOOKS && follows(widget) && widget.value < 0);
  }

  let resetting = false;
  function reset(widget) {
    if (!widget || wired(node, widget.name)) return;
    if (!numbers.includes(widget)) return setValue(node, widget, inputSpec(node, widget.name)[1].default);
    shownByUs.set(widget, widget.value);
    showStated();
    resetting = true;
    if (widget.value >= 0) widget.callback?.(widget.value, app.canvas, node); // for live pictures
    resetting = false;
    requestSnapshot();
  }

  const sliders = node.widgets.filter(({ name }) => inputSpec(node, name)[1]?.display?.endsWith("slider"));
  resetByDoubleClick(node, sliders, reset);
  for (const widget of numbers) {
    updateFollowing(widget);
    patchAfter(widget, "callback", () => {
      if (resetting) shownByUs.set(widget, widget.value); // which the frontend has rounded
      else updateFollowing(widget);
      showStated();
      ask();
    });
    widget.serializeValue = () => (follows(widget) ? sentinel(widget) : widget.value);
    translate(ZERO[widget.name] ?? "own", { name: labels.get(widget)[0] }).then((text) => {
      labels.get(widget).push(text);
      showStated();
    });
  }
  patchAfter(node, "onConfigure", () => numbers.forEach(updateFollowing));
  patchAfter(node, "onSerialize", ({ widgets_values: values }) => {
    for (const widget of numbers) if (values && follows(widget)) values[node.widgets.indexOf(widget)] = sentinel(widget);
  });
  if (!numbers.some(({ name }) => name !== "pick")) return;
  onModel(node, (_, name) => {
    const before = model;
    model = name ?? (wired(node, "model") ? undefined : usualModel(node));
    if (model !== before) models = []; // which were those of another model
    if (!model) stated = {};
    showStated();
    ask();
  });
  modelListeners.set(node, (names) => {
    models = names;
    ask();
  });
  if (input) onUpstreamChoice(node, input, fileWidget, ask);
  for (const name of DECISIVE) if (widgetOf(node, name)) patchAfter(widgetOf(node, name), "callback", ask);
}

function resetByDoubleClick(node, sliders, reset) {
  resets.set(node, (name) => reset(sliders.find((widget) => widget.name === name)));
  // In the classic renderer:
  for (const widget of sliders) widget.onPointerDown = (pointer) => void (pointer.onDoubleClick = () => reset(widget));
}

/** Let the sliders of a blueprint, which the frontend makes, begin at 0; a double-click brings back the number of the node inside. */
function prepareBlueprint(node) {
  node.widgets.forEach(beginAtZero);
  resetByDoubleClick(node, node.widgets.filter(({ type }) => type.endsWith("slider")), (widget) => {
    if (!widget || wired(node, widget.name)) return;
    const { inputs, nodes } = node.subgraph, [wire] = inputs.find(({ name }) => name === widget.name).linkIds;
    const isEnd = ({ link }) => link === wire; // its target_slot is outdated if the node has got inputs since
    const inner = nodes.find((each) => each.inputs?.some(isEnd));
    setValue(node, widget, widgetOf(inner, inner.inputs.find(isEnd).name).value);
  });
}

const wholeStops = new WeakMap(); // from the options of a slider that begins at 0 to the colors that it had below, too

/** Let a slider begin at 0, so that none of it means something else, unless it shows FROM_MODEL since nobody knows the number. */
function beginAtZero({ options, value }) {
  if (options.min !== FROM_MODEL || value < 0) return;
  const stops = options.gradient_stops, least = -FROM_MODEL / (options.max - FROM_MODEL); // where on the slider 0 was
  options.min = 0;
  if (!stops) return;
  wholeStops.set(options, stops);
  options.gradient_stops = stops.slice(2).map((stop) => ({ ...stop, offset: (stop.offset - least) / (1 - least) }));
}

/** Let a slider begin at FROM_MODEL again. */
function beginBelowZero({ options }) {
  if (options.min !== 0) return;
  options.min = FROM_MODEL;
  if (wholeStops.has(options)) options.gradient_stops = wholeStops.get(options);
}

/** Fold the advanced inputs in the classic renderer, too, except connected ones; a button shows and folds them. */
function foldInClassic(node) {
  if (!node.widgets.some(({ options }) => options?.advanced)) return;
  const updateLabel = async () => {
    button.label = await translate(node.showAdvanced ? "less" : "more");
    node.setDirtyCanvas?.(true, true);
  };
  const toggle = () => {
    node.toggleAdvanced();
    updateLabel();
  };
  const button = node.addWidget("button", "flowcore_more", "", toggle, { serialize: false, canvasOnly: true });
  button.serialize = false;
  const area = node.widgets.findIndex(({ name }) => name === AREA); // which stays below
  if (area >= 0) node.widgets.splice(area, 0, node.widgets.pop());
  const fold = () => foldAdvanced(node, ({ name }) => !wired(node, name));
  patchAfter(node, "onConnectionsChange", fold);
  fold();
  updateLabel();
  node.setSize(node.computeSize());
}

/** Step the seed by the number of samples: a step of one would make all but one of them again. */
function stepBySamples(node) {
  const [seed, samples] = ["seed", "samples"].map((name) => widgetOf(node, name));
  if (!seed || !samples) return;
  let last = seed.value;
  patchAfter(node, "onConfigure", () => (last = seed.value));
  const follow = (isStep) => {
    const step = seed.value - last;
    if (Math.abs(step) === 1 && isStep) seed.value = Math.max(0, last + step * samples.value);
    last = seed.value;
  };
  let isQueued = false; // whether the frontend changes the seed now, before or after a run
  patchAfter(seed, "callback", () => !isQueued && follow(isStepped()));
  const control = seed.linkedWidgets?.[0];
  for (const moment of ["beforeQueued", "afterQueued"]) {
    const change = control?.[moment];
    if (!change) continue;
    control[moment] = function (...args) {
      isQueued = true;
      const result = change.apply(this, args);
      isQueued = false;
      follow(["increment", "decrement"].includes(control.value));
      return result;
    };
  }
}

/** Show the looks of a menu in the language of the frontend. */
function nameLooks(node) {
  const menu = widgetOf(node, "look");
  if (menu) menu.options.getOptionLabel = (look) => translateMessage({ template: look, values: {} });
}

const WIDE = 400, USUAL = 300, PICTURE = 264; // pixels: widths of new nodes with and without a gallery, and the height of a picture with its caption
const SHOW_PICTURES = ["Shrink", "Encode", "Decode", "Morph", "FindScratches", "Save", "Train"].map((name) => `Flowcore${name}`); // after a run

/** Give a new node room for its labels, its samples in a row, and the pictures that the frontend will show on it. */
function makeRoom(node) {
  if (node.widgets?.length) fitNode(node, hasPick(node) ? WIDE : USUAL);
  if (SHOW_PICTURES.includes(node.comfyClass)) node.setSize([Math.max(USUAL, node.size[0]), node.size[1] + PICTURE]);
}

const NEEDED = { outside: "mask", strength: "direction" }; // from a widget to the input without which it has no effect

app.registerExtension({
  name: "flowcore.widgets",
  setup: () => window.addEventListener("dblclick", ({ target }) => { // on a slider of Nodes 2.0
    const row = target.closest(".lg-node-widget");
    if (row && !target.closest("input")) resets.get(nodeAround(row))?.(row.querySelector("[aria-label]")?.ariaLabel);
  }),
  nodeCreated(node) {
    if (node.subgraph) patchAfter(node, "onConfigure", () => node.properties.cnr_id === "flowcore" && prepareBlueprint(node));
    if (!isOurs(node)) return;
    if (node.widgets) {
      followModel(node);
      foldInClassic(node);
    }
    stepBySamples(node);
    nameLooks(node);
    makeRoom(node);
    for (const [name, input] of Object.entries(NEEDED)) {
      const widget = widgetOf(node, name);
      if (!widget || !node.inputs?.some((each) => each.name === input)) continue;
      const update = () => setHidden(node, [widget], () => !wired(node, input));
      for (const event of ["onConfigure", "onConnectionsChange"]) patchAfter(node, event, update);
      update();
    }
  },
});
