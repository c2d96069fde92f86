// How a node of ours shows its widgets: `outside` is there only where a mask is, a number that the model decides is shown, and
// advanced ones are folded.
import { app } from "../../../scripts/app.js";
import { after, AREA, hide, isOurs, isStepped, OWN, refresh, say, widgetOf, wired } from "./canvas.js";
import { foldAdvanced } from "./frontend.js";
import { onModel, usual } from "./models.js";

const ZERO = { factor: "scale", pick: "all" }; // numbers whose 0 means something else, and what is said then

/** Show the number that the model states where one follows it. Files and prompts hold OWN or 0 for it, as ever. */
function follow(node) {
  const numbers = node.widgets.filter(({ name, options }) => options?.min === OWN || name in ZERO);
  const rest = ({ name }) => (name in ZERO ? 0 : OWN);
  const following = new Map(); // to the values that they show: another one is a person's, wherever it was written
  const follows = (widget) => following.get(widget) === widget.value;
  const read = (widget) => {
    following.delete(widget);
    if (widget.value < 0 || (widget.value === 0 && widget.name in ZERO)) following.set(widget, widget.value);
  };
  const labels = new Map(numbers.map((widget) => [widget, [widget.label ?? widget.name]]));
  let stated = {}; // numbers by widget
  const show = () => {
    const before = JSON.stringify(numbers.map(({ label, value }) => [label, value]));
    for (const widget of numbers) {
      const own = follows(widget);
      // Colors of other pictures are not strengthened.
      const given = widget.name === "saturation" && (wired(node, "latents") || wired(node, "reference"));
      if (own) following.set(widget, (widget.value = (given ? 1 : stated[widget.name]) ?? rest(widget)));
      widget.label = labels.get(widget)[Number(own)] ?? widget.label;
    }
    if (before === JSON.stringify(numbers.map(({ label, value }) => [label, value]))) return;
    refresh(node);
    node.setDirtyCanvas?.(true, true);
  };
  for (const widget of numbers) {
    read(widget);
    after(widget, "callback", () => show(read(widget)));
    widget.serializeValue = () => (follows(widget) ? rest(widget) : widget.value);
    say(ZERO[widget.name] ?? "own", { name: labels.get(widget)[0] }).then((words) => show(labels.get(widget).push(words)));
  }
  after(node, "onConfigure", () => numbers.forEach(read));
  after(node, "onSerialize", ({ widgets_values: saved }) => {
    for (const widget of numbers) if (saved && follows(widget)) saved[node.widgets.indexOf(widget)] = rest(widget);
  });
  // Where the model is chosen by the picture, or none is there yet, the numbers are those of the usual one.
  onModel(node, (model) => show((stated = model || !wired(node, "model") ? { ...usual(node)?.own, ...model?.own } : {})));
}

/** Fold the advanced inputs in the classic renderer, too, but for those with a wire. A button there shows them, and folds them. */
function fold(node) {
  if (!node.widgets.some(({ options }) => options?.advanced)) return;
  const label = (key) => say(key).then((text) => ((button.label = text), node.setDirtyCanvas?.(true, true)));
  const button = node.addWidget("button", "flowcore_more", "", () => (node.toggleAdvanced(), label(node.showAdvanced ? "less" : "more")), {
    serialize: false,
    canvasOnly: true,
  });
  button.serialize = false;
  const last = node.widgets.findIndex(({ name }) => name === AREA); // what a run shows stays below
  if (last >= 0) node.widgets.splice(last, 0, node.widgets.pop());
  const look = () => foldAdvanced(node, ({ name }) => !wired(node, name));
  after(node, "onConnectionsChange", look);
  look();
  label(node.showAdvanced ? "less" : "more");
  node.setSize(node.computeSize());
}

/** Let the next seed be the one behind all samples: one on would make all but one of them again. */
function leap(node) {
  const [seed, samples] = ["seed", "samples"].map((name) => widgetOf(node, name));
  if (!seed || !samples) return;
  let last = seed.value;
  after(node, "onConfigure", () => (last = seed.value));
  after(seed, "callback", () => {
    const by = seed.value - last;
    if (Math.abs(by) === 1 && isStepped()) seed.value = Math.max(0, last + by * samples.value);
    last = seed.value;
  });
}

const NEEDED = { outside: "mask", strength: "direction" }; // a widget, and the input without which it does nothing

app.registerExtension({
  name: "flowcore.widgets",
  nodeCreated(node) {
    if (!isOurs(node)) return;
    if (node.widgets) follow(node);
    if (node.widgets) fold(node);
    leap(node);
    for (const [name, input] of Object.entries(NEEDED)) {
      const widget = widgetOf(node, name);
      if (!widget || !node.inputs?.some((each) => each.name === input)) continue;
      const look = () => hide(node, [widget], () => !wired(node, input));
      for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, look);
      look();
    }
  },
});
