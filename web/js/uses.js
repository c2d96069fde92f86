// What the model in the menu of Load Flow Model is for, on the node as soon as it is chosen. A run replaces it by all facts.
import { app } from "../../../scripts/app.js";
import { after, language, texts, widgetOf, wired } from "./canvas.js";
import { known } from "./models.js";
import { show } from "./text.js";

app.registerExtension({
  name: "flowcore.uses",
  nodeCreated(node) {
    const menu = node.comfyClass === "FlowcoreLoadModel" && widgetOf(node, "model_name");
    if (!menu) return;
    let said;
    const update = async () => {
      const model = wired(node, menu.name) ? undefined : menu.value;
      if (model === said) return;
      said = model;
      const use = await useOf(node, model);
      if (said === model) show(node, use.slice(0, 1).toUpperCase() + use.slice(1));
    };
    after(menu, "callback", update);
    for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, update);
    update();
  },
});

/** A shipped model has a text of its own, and a file those of its tasks; nothing for a file that does not state them. */
async function useOf(node, model) {
  const every = await texts;
  const uses = { ...every.en?.flowcore?.uses, ...every[language()]?.flowcore?.uses };
  return uses[model] ?? (known(node)[model] ?? []).map((task) => uses[task]).join("; ");
}
