// Which pictures Flow Example gives, shown on the node as soon as they are chosen.
import { app } from "../../../scripts/app.js";
import { addElement, after, widgetOf } from "./canvas.js";
import { examplesOf } from "./picture.js";

const HEIGHT = 150;
const MOST = 9; // pictures that are shown of a batch

const LOOK = document.createElement("style"); // HEIGHT is in it
LOOK.textContent = `
.flowcore-example { position: relative; min-height: 150px; }
.flowcore-example > div { position: absolute; inset: 0; display: grid; gap: 4px; }
.flowcore-example img { width: 100%; height: 100%; min-width: 0; min-height: 0; object-fit: contain; }
`;

app.registerExtension({
  name: "flowcore.example",
  nodeCreated(node) {
    if (node.comfyClass !== "FlowcoreExample") return;
    const widget = widgetOf(node, "picture");
    if (!widget || !examplesOf(node).length) return;
    const frame = document.createElement("div");
    frame.className = "flowcore-example";
    const grid = document.createElement("div"); // out of the flow: pictures do not make the node taller
    frame.append(grid);
    addElement(node, "flowcore_example", frame, () => HEIGHT, LOOK);
    const show = () => {
      const pictures = examplesOf(node).slice(0, MOST);
      grid.style.gridTemplate = `repeat(${Math.ceil(pictures.length / 3)}, 1fr) / repeat(${Math.min(3, pictures.length)}, 1fr)`;
      grid.replaceChildren(
        ...pictures.map((src) => Object.assign(new Image(), { src, alt: widget.value, draggable: false })),
      );
    };
    after(widget, "callback", show);
    after(node, "onConfigure", show);
    show();
  },
});
