// The menu of Load Flow Model: it offers only models that the connected nodes can use, and says what each is for. If a person
// connects a model that cannot be used, one that can replaces it.
import { inputSpec, patchAfter, language, refresh, setValue, texts, widgetOf, wired } from "./canvas.js";
import { app, isOpening, rankByAlias, rankInSearch } from "./frontend.js";
import { translateMessage } from "./messages.js";
import { onUpstreamChoice, originOf } from "./picture.js";
import { onResult } from "./runs.js";
import { offer, show } from "./text.js";

const TASKS = "flowcore_tasks"; // of the menu: from a model to its tasks; of an input: tasks, any of which its model must have
const FACTS = "flowcore_facts"; // of the menu: from a model to what its file states
// Models to prefer; the first is `AUTO_MODEL` in nodes/loaders.py.
const PREFERRED = ["upscaler that suits the picture", "srflow-x4", "glow-photos"];

app.registerExtension({
  name: "flowcore.models",
  beforeRegisterVueAppNodeDefs(every) {
    for (const definition of every) {
      if (definition.name === "FlowcoreLoadModel") rankInSearch(definition);
      // "denoise", "inpaint", "seed"
      if (["FlowcoreClean", "FlowcoreRepair", "FlowcoreVerify"].includes(definition.name)) rankByAlias(definition);
      if (definition.name === "FlowcoreRestore") rankInSearch(definition, 9); // "restore" usually means an old photograph
    }
  },
  nodeCreated(node) {
    const menu = node.comfyClass === "FlowcoreLoadModel" && widgetOf(node, "model_name");
    if (!menu) return;
    // The list depends on the wires, so it is filtered whenever it is read. The frontend sets it anew after a refresh.
    let allModels = menu.options.values;
    Object.defineProperty(menu.options, "values", {
      configurable: true,
      enumerable: true,
      get: () => compatible(node, allModels, menu.value),
      set: (values) => (allModels = values),
    });
    patchAfter(node, "onConnectionsChange", () => {
      const opening = isOpening();
      queueMicrotask(() => { // when the wire is there
        const usable = compatible(node, allModels);
        if (!opening && !usable.includes(menu.value) && !wired(node, menu.name)) {
          const withTasks = usable.filter((name) => name in statedBy(node, TASKS));
          setValue(node, menu, withTasks.find((name) => PREFERRED.includes(name)) ?? withTasks[0] ?? menu.value);
        }
        refresh(node);
      });
    });
    const showUse = async () => {
      const useOf = await usesOf(node);
      menu.options.getOptionLabel = (name) => (useOf(name) ? `${translateMessage({ template: name })}: ${useOf(name)}` : name);
      const use = wired(node, menu.name) ? "" : useOf(menu.value);
      show(node, use.slice(0, 1).toUpperCase() + use.slice(1));
      refresh(node);
    };
    patchAfter(menu, "callback", showUse);
    for (const event of ["onConfigure", "onConnectionsChange"]) patchAfter(node, event, showUse);
    showUse();
  },
});

// Offer to switch to the model that a run recommends.
onResult((node, { flowcore_better: better, text }) => {
  const loader = better?.[0] && originOf(node, "model"), menu = loader && widgetOf(loader, "model_name");
  if (text && menu && !wired(loader, menu.name) && menu.value !== better[0])
    offer(node, "switch", { name: better[0] }, () => setValue(loader, menu, better[0]));
});

/** Return a function from a model to what it is for: its own text, else those of its tasks, if its file states any. */
async function usesOf(node) {
  const every = await texts;
  const uses = { ...every.en?.flowcore?.uses, ...every[language()]?.flowcore?.uses };
  return (model) => uses[model] ?? (statedBy(node, TASKS)[model] ?? []).map((task) => uses[task]).join("; ");
}

/** TASKS or FACTS of the models in the menu of a loader. */
const statedBy = (loader, key) => inputSpec(loader, "model_name")[1]?.[key] ?? {};

/**
 * Call `act` whenever a node gets another model, with what its file states, such as its `styles`, and its name in the menu; both
 * are undefined if they are known only in a run.
 */
export function onModel(node, act) {
  const menuOf = (loader) => loader?.comfyClass === "FlowcoreLoadModel" && widgetOf(loader, "model_name");
  onUpstreamChoice(node, "model", menuOf, (menu) => {
    const loader = originOf(node, "model");
    if (menu && !wired(loader, menu.name)) act(statedBy(loader, FACTS)[menu.value], menu.value);
    else act();
  });
}

/** The model that a node would usually get. */
export function usualModel(node) {
  const tasks = LiteGraph.registered_node_types.FlowcoreLoadModel?.nodeData?.input.required?.model_name[1]?.[TASKS] ?? {};
  const needs = inputSpec(node, "model")[1]?.[TASKS] ?? [];
  const usable = Object.keys(tasks).filter((name) => tasks[name].some((task) => needs.includes(task)));
  return usable.find((name) => PREFERRED.includes(name)) ?? usable[0];
}

/** Those of some models that all connected nodes can use, and the current one in any case. */
function compatible(loader, models, current) {
  const needs = neededTasks(loader), tasksOf = statedBy(loader, TASKS);
  const fits = (name) => !tasksOf[name] || needs.every((tasks) => tasks.some((task) => tasksOf[name].includes(task)));
  return models.filter((name) => name === current || fits(name));
}

/** The tasks that each input connected to a node's first output accepts, looking past reroutes. */
function neededTasks(node) {
  return (node.outputs?.[0]?.links ?? []).flatMap((id) => {
    const link = node.graph?.getLink(id);
    const target = link && node.graph.getNodeById(link.target_id);
    if (target?.type === "Reroute") return neededTasks(target);
    const tasks = inputSpec(target, target?.inputs[link.target_slot]?.name)[1]?.[TASKS];
    return tasks ? [tasks] : [];
  });
}
