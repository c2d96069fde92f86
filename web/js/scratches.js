// The marks of Flow Find Scratches follow its slider after a run, whose text of how much is marked is then no longer true.
import { patchAfter, widgetOf, wired } from "./canvas.js";
import { app, showPreview } from "./frontend.js";
import { Live } from "./live.js";
import { show } from "./text.js";

app.registerExtension({
  name: "flowcore.scratches",
  nodeCreated(node) {
    const slider = node.comfyClass === "FlowcoreFindScratches" && widgetOf(node, "sensitivity");
    if (!slider) return;
    const live = new Live(node, () => {}, (_, url) => {
      showPreview(node, url);
      show(node, "");
    });
    patchAfter(slider, "callback", () => wired(node, slider.name) || live.ask("marks", { [slider.name]: slider.value }));
  },
});
