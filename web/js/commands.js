// A command, also in the toolbox of a selected node, that enlarges its picture: it adds Load Flow Model, Flow Upscale, Save Image.
import { translate, widgetOf } from "./canvas.js";
import { app } from "./frontend.js";

const ID = "flowcore.enlarge";
const GAP = 60; // pixels between nodes
const LOWER = 150; // pixels of the loader below the other nodes, so that it does not hide the wire of the picture

const imageOutput = (item) => item.outputs?.findIndex(({ type }) => type === "IMAGE") ?? -1;

app.registerExtension({
  name: "flowcore.commands",
  commands: [{ id: ID, label: "Enlarge this picture", icon: "pi pi-search-plus", function: enlarge }],
  getSelectionToolboxCommands: (item) => (imageOutput(item) < 0 ? [] : [ID]),
});

async function enlarge() {
  const chosen = [...app.canvas.selectedItems].find((item) => imageOutput(item) >= 0);
  if (!chosen) return app.extensionManager.toast.add({ severity: "info", summary: await translate("unchosen"), life: 5000 });
  let left = chosen.pos[0] + chosen.size[0];
  app.canvas.emitBeforeChange();
  const [loader, upscaler, saving] = ["FlowcoreLoadModel", "FlowcoreUpscale", "SaveImage"].map((kind, index) => {
    const node = LiteGraph.createNode(kind);
    node.pos = [left + GAP, chosen.pos[1] + (index ? 0 : LOWER)];
    left += GAP + node.size[0];
    const values = node.widgets.map(({ value }) => value);
    chosen.graph.add(node);
    node.widgets.forEach((widget, k) => (widget.value = values[k])); // the frontend restores those of an earlier node with this id
    return node;
  });
  loader.connect(0, upscaler, "model");
  chosen.connect(imageOutput(chosen), upscaler, "image");
  upscaler.connect(0, saving, "images");
  widgetOf(saving, "filename_prefix").value = "flowcore/enlarged";
  app.canvas.selectItems([upscaler]);
  app.canvas.emitAfterChange();
}
