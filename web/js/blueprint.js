// On the classic canvas, a subgraph of this pack shows the picture of its Preview Image; Nodes 2.0 does so by itself.
import { patchAfter } from "./canvas.js";
import { api, app } from "./frontend.js";
import { addressOf } from "./picture.js";
import { isHere, nodeAt } from "./runs.js";

const MARGIN = 10, ROW = 24;
const pictures = new WeakMap(); // by subgraph node

api.addEventListener("executed", ({ detail: { node: path, output, prompt_id: run } }) => {
  const outer = nodeAt(String(path).split(":").slice(0, -1).join(":"));
  if (isHere(run)) show(outer, nodeAt(path), output);
});

app.registerExtension({
  name: "flowcore.blueprint",
  onNodeOutputsUpdated(outputs) { // a workflow is opened again
    for (const [path, output] of Object.entries(outputs)) {
      const inner = nodeAt(path);
      show(app.rootGraph.nodes.find(({ subgraph }) => subgraph && subgraph === inner?.graph), inner, output);
    }
  },
});

function show(outer, inner, output) {
  if (outer?.properties?.cnr_id !== "flowcore" || inner?.type !== "PreviewImage" || !output?.images?.length) return;
  if (!pictures.has(outer)) patchAfter(outer, "onDrawForeground", (context) => draw(outer, context));
  const picture = Object.assign(new Image(), { src: addressOf(output.images[0]) });
  picture.decode().then(() => outer.setDirtyCanvas(true, true), () => {});
  pictures.set(outer, picture);
}

/** Draw the picture of a subgraph node below its widgets, as large as it fits. */
function draw(node, context) {
  const picture = pictures.get(node), [width, height] = node.size;
  if (LiteGraph.vueNodesMode || node.flags.collapsed || !picture.naturalWidth) return;
  const top = Math.max(0, ...node.widgets.map((widget) => widget.y + ROW)) + MARGIN;
  const scale = Math.min((width - 2 * MARGIN) / picture.naturalWidth, (height - MARGIN - top) / picture.naturalHeight);
  if (scale <= 0) return;
  const [drawnWidth, drawnHeight] = [picture.naturalWidth * scale, picture.naturalHeight * scale];
  context.drawImage(picture, (width - drawnWidth) / 2, top, drawnWidth, drawnHeight);
}
