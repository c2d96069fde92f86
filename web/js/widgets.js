// Which widgets a node of ours shows: advanced ones are folded away, and `outside` is there only where a mask is.
import { app } from "../../../scripts/app.js";
import { wired } from "./canvas.js";

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

app.registerExtension({
  name: "flowcore.widgets",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Flowcore")) return;
    for (const widget of node.widgets ?? []) {
      if (widget.options?.advanced) fold(node, widget);
    }
    const outside = node.widgets?.find(({ name }) => name === "outside");
    if (!outside) return;
    const follow = () => {
      const hidden = !wired(node, "mask");
      if (outside.hidden === hidden) return;
      outside.hidden = outside.options.hidden = hidden;
      node.widgets.reverse(); // the list is watched, the options are not
      node.widgets.reverse();
      node.setDirtyCanvas?.(true, true);
    };
    for (const event of ["onConfigure", "onConnectionsChange"]) {
      const before = node[event];
      node[event] = function () {
        const result = before?.apply(this, arguments);
        follow();
        return result;
      };
    }
    follow();
  },
});
