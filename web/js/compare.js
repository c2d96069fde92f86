// Before and after, inside a node of ours. The frontend fills its comparing widget for a node of its own only.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const KIND = "imagecompare";

app.registerExtension({
  name: "flowcore.compare",
  nodeCreated(node) {
    const widget = ours(node);
    if (!widget) return;
    // What it shows is no input: sent along, it would make every run a new one, and nothing would be kept from the last.
    widget.options.serialize = false;
    const configured = node.onConfigure;
    node.onConfigure = function () {
      configured?.apply(this, arguments);
      takeNoViewForAValue(this);
    };
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      show(this, output);
    };
  },
  // Results that the frontend remembers, of a workflow that is opened again.
  onNodeOutputsUpdated(outputs) {
    for (const [place, output] of Object.entries(outputs)) {
      const node = output?.a_images && app.graph.getNodeById(place);
      if (node) show(node, output);
    }
  },
});

function ours(node) {
  return node.comfyClass?.startsWith("Flowcore") ? node.widgets?.find((widget) => widget.type === KIND) : undefined;
}

// Some frontends save what the view shows, as the node's last value. Inputs that were appended since stand before the
// view: in a workflow from then such a value lands on the first of them, which must take its default.
function takeNoViewForAValue(node) {
  for (const widget of node.widgets ?? []) {
    if (widget.type === KIND || typeof widget.value !== "object" || widget.value === null) continue;
    const described = node.constructor.nodeData?.input?.optional?.[widget.name];
    if (described?.[1]?.default !== undefined) widget.value = described[1].default;
  }
}

function show(node, output) {
  const widget = ours(node);
  if (!widget || !output?.a_images) return;
  const address = ({ filename, subfolder, type }) =>
    api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
  widget.value = { beforeImages: output.a_images.map(address), afterImages: (output.b_images ?? []).map(address) };
  widget.callback?.(widget.value);
}
