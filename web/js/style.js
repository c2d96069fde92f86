// What Flow Style makes of the numbers as they stand, below its sliders: there after a run, and while they are dragged.
import { app } from "../../../scripts/app.js";
import { addElement, after, grow, hide, make, sharpen, wired } from "./canvas.js";
import { Live } from "./live.js";
import { onModel } from "./models.js";

const HEIGHT = 160;
const LOOK = `<style>
.flowcore-live { position: relative; }
.flowcore-live img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
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
    const live = new Live(node, ask, (_, url) => sharpen((image ??= attach(node)), url));
    for (const widget of numbers) after(widget, "callback", ask);
    const sliders = numbers.filter(({ name }) => name !== "strength");
    // One that would be an error says so by its number.
    onModel(node, (model) => hide(node, sliders, ({ name, value }) => model && !value && !model.styles.includes(name)));
  },
});

function attach(node) {
  const image = make("img", { alt: "", draggable: false });
  addElement(node, "flowcore_live", make("div", { className: "flowcore-live" }, image), HEIGHT, LOOK);
  grow(node);
  node.setDirtyCanvas?.(true, true);
  return image;
}
