// A command, also in the toolbox of a selected node, enlarges its picture: by Load Flow Model, Flow Upscale and Save Image.
import { app } from "../../../scripts/app.js";
import { say, widgetOf } from "./canvas.js";

const ID = "flowcore.enlarge";
const GAP = 60, LOWER = 150; // pixels between nodes; of the loader, below the wire of the picture

const pictureOf = (item) => item.outputs?.findIndex(({ type }) => type === "IMAGE") ?? -1; // the place of its output

app.registerExtension({
  name: "flowcore.commands",
  commands: [{ id: ID, label: "Enlarge this picture", icon: "pi pi-search-plus", function: enlarge }],
  getSelectionToolboxCommands: (item) => (pictureOf(item) < 0 ? [] : [ID]),
});

async function enlarge() {
  const chosen = [...app.canvas.selectedItems].find((item) => pictureOf(item) >= 0);
  if (!chosen) return app.extensionManager.toast.add({ severity: "info", summary: await say("unchosen"), life: 5000 });
  let left = chosen.pos[0] + chosen.size[0];
  app.canvas.emitBeforeChange();
  const [loader, made, saving] = ["FlowcoreLoadModel", "FlowcoreUpscale", "SaveImage"].map((kind, place) => {
    const node = LiteGraph.createNode(kind);
    node.pos = [left + GAP, chosen.pos[1] + (place ? 0 : LOWER)];
    left += GAP + node.size[0];
    const values = node.widgets.map(({ value }) => value);
    chosen.graph.add(node);
    node.widgets.forEach((widget, k) => (widget.value = values[k])); // the frontend keeps those of an earlier node of its number
    return node;
  });
  loader.connect(0, made, "model");
  chosen.connect(pictureOf(chosen), made, "image");
  made.connect(0, saving, "images");
  widgetOf(saving, "filename_prefix").value = "flowcore/enlarged";
  app.canvas.selectItems([made]);
  app.canvas.emitAfterChange();
}
