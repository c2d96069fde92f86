// How a node of ours shows its widgets: advanced ones are folded away, `outside` is there only where a mask is, and a
// number that the model decides says so.
import { app } from "../../../scripts/app.js";
import { after, isOurs, refresh, say, widgetOf, wired } from "./canvas.js";

// Nodes 2.0 reads the option by itself. The classic canvas offers Show Advanced in the menu of a node with such a widget,
// but leaves a hole where one is folded away, unless it is hidden.
function fold(node, widget) {
  widget.advanced = true;
  let hidden = widget.hidden;
  Object.defineProperty(widget, "hidden", {
    configurable: true,
    enumerable: true,
    get: () => hidden || (!LiteGraph.vueNodesMode && !node.showAdvanced),
    set: (value) => (hidden = value),
  });
}

const OWN = -0.1; // the left end of sliders that can follow the model; anything below 0 does

async function explain(node, widget) {
  const label = widget.label ?? widget.name;
  const own = await say("own", { name: label });
  const follow = () => {
    const wanted = widget.value < 0 ? own : label;
    if (widget.label === wanted) return;
    widget.label = wanted;
    refresh(node);
    node.setDirtyCanvas?.(true, true);
  };
  after(widget, "callback", follow);
  after(node, "onConfigure", follow);
  follow();
}

app.registerExtension({
  name: "flowcore.widgets",
  nodeCreated(node) {
    if (!isOurs(node)) return;
    for (const widget of node.widgets ?? []) {
      if (widget.options?.advanced) fold(node, widget);
      if (widget.options?.min === OWN) explain(node, widget);
    }
    const outside = widgetOf(node, "outside");
    if (!outside) return;
    const follow = () => {
      const hidden = !wired(node, "mask");
      if (outside.hidden === hidden) return;
      outside.hidden = outside.options.hidden = hidden;
      refresh(node);
      node.setDirtyCanvas?.(true, true);
    };
    for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, follow);
    follow();
  },
});
