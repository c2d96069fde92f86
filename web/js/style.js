// What Flow Style makes of the numbers as they stand, below its sliders: there after a run, and while they are dragged.
import { app } from "../../../scripts/app.js";
import { addElement, after, hide, wired } from "./canvas.js";
import { Live, sharpen } from "./live.js";
import { onModel } from "./models.js";

const HEIGHT = 160;

// HEIGHT is in it
const LOOK = `<style>
.flowcore-live { position: relative; min-height: 160px; }
.flowcore-live img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.flowcore-live img.small { image-rendering: pixelated; }
</style>`;

app.registerExtension({
  name: "flowcore.style",
  nodeCreated(node) {
    if (node.comfyClass !== "FlowcoreStyle") return;
    const numbers = node.widgets.filter((widget) => typeof widget.value === "number");
    const ask = () => {
      const own = numbers.filter((widget) => !wired(node, widget.name));
      live.ask("style", Object.fromEntries(own.map((widget) => [widget.name, widget.value])));
    };
    let image;
    const live = new Live(node, ask, (_, url) => {
      image ??= attach(node);
      sharpen(image, url);
    });
    for (const widget of numbers) after(widget, "callback", ask);
    const sliders = numbers.filter(({ name }) => name !== "strength");
    // One that would be an error says so by its number.
    onModel(node, (model) => hide(node, sliders, ({ name, value }) => model && !value && !model.styles.includes(name)));
  },
});

function attach(node) {
  const frame = document.createElement("div");
  const image = Object.assign(new Image(), { alt: "", draggable: false });
  frame.className = "flowcore-live";
  frame.append(image);
  addElement(node, "flowcore_live", frame, () => HEIGHT, LOOK);
  const needed = node.computeSize()[1];
  if (node.size[1] < needed) node.setSize([node.size[0], needed]); // as the classic canvas asks
  node.setDirtyCanvas?.(true, true);
  return image;
}
