// The menu of Load Flow Model offers what the nodes at its wire can use: models say what they are made for, and inputs what
// they take. Where a person connects a model that cannot be used, one that can takes its place. In the menu and below it stands
// what models are for.
import { app } from "../../../scripts/app.js";
import { after, language, refresh, set, texts, widgetOf, wired } from "./canvas.js";
import { favor, isOpening } from "./frontend.js";
import { onChoice, originOf } from "./picture.js";
import { onResult } from "./runs.js";
import { offer, show } from "./text.js";

const TASKS = "flowcore_tasks"; // of the menu: model to tasks; of an input: the tasks one of which it needs
const FACTS = "flowcore_facts"; // of the menu: model to what its file states
const FIRST = ["upscaler that suits the picture", "srflow-x4", "glow-photos"]; // where there are several, the ones to try first

app.registerExtension({
  name: "flowcore.models",
  beforeRegisterVueAppNodeDefs(every) {
    for (const definition of every) {
      if (definition.name === "FlowcoreLoadModel") favor(definition);
      if (definition.name === "FlowcoreRestore") favor(definition, 9); // who types "restore" has an old photograph
    }
  },
  nodeCreated(node) {
    const menu = node.comfyClass === "FlowcoreLoadModel" && widgetOf(node, "model_name");
    if (!menu) return;
    let every = menu.options.values; // the frontend writes it anew when a person refreshes
    Object.defineProperty(menu.options, "values", {
      configurable: true,
      enumerable: true,
      get: () => offered(node, every, menu.value),
      set: (values) => (every = values),
    });
    after(node, "onConnectionsChange", () => {
      const opening = isOpening();
      queueMicrotask(() => { // when the wire is there
        const usable = offered(node, every);
        if (!opening && !usable.includes(menu.value) && !wired(node, menu.name)) {
          const sure = usable.filter((name) => name in known(node));
          set(node, menu, sure.find((name) => FIRST.includes(name)) ?? sure[0] ?? menu.value);
        }
        refresh(node);
      });
    });
    const tell = async () => {
      const use = await usesOf(node);
      menu.options.getOptionLabel = (name) => (use(name) ? `${name}: ${use(name)}` : name);
      const said = wired(node, menu.name) ? "" : use(menu.value);
      show(node, said.slice(0, 1).toUpperCase() + said.slice(1));
      refresh(node);
    };
    after(menu, "callback", tell);
    for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, tell);
    tell();
  },
});

// One click takes the model that is made for such a picture.
onResult((node, { flowcore_better: better, text }) => {
  const loader = better?.[0] && originOf(node, "model"), menu = loader && widgetOf(loader, "model_name");
  if (text && menu && !wired(loader, menu.name) && menu.value !== better[0])
    offer(node, "switch", { name: better[0] }, () => set(loader, menu, better[0]));
});

/** What models are for: shipped ones have texts of their own, files those of their tasks; nothing where no task is stated. */
async function usesOf(node) {
  const every = await texts;
  const uses = { ...every.en?.flowcore?.uses, ...every[language()]?.flowcore?.uses };
  return (model) => uses[model] ?? (known(node)[model] ?? []).map((task) => uses[task]).join("; ");
}

/** The tasks of the models that state them. */
const known = (node, facts = TASKS) => node.constructor.nodeData?.input?.required?.model_name?.[1]?.[facts] ?? {};

/**
 * Tell what the file of the model at a node's wire states: `styles`, and `own` numbers by the names of widgets; undefined
 * where it is known only in a run.
 */
export function onModel(node, tell) {
  const menuOf = (loader) => loader?.comfyClass === "FlowcoreLoadModel" && widgetOf(loader, "model_name");
  onChoice(node, "model", menuOf, (menu) => {
    const loader = originOf(node, "model");
    tell(menu && !wired(loader, menu.name) ? known(loader, FACTS)[menu.value] : undefined);
  });
}

/** What the file states of the model that a node would usually get. */
export function usual(node) {
  const { required } = LiteGraph.registered_node_types.FlowcoreLoadModel?.nodeData?.input ?? {};
  const { [TASKS]: tasks = {}, [FACTS]: facts = {} } = required?.model_name[1] ?? {};
  const needs = node.constructor.nodeData?.input?.required?.model?.[1]?.[TASKS] ?? [];
  const fits = Object.keys(tasks).filter((name) => tasks[name].some((task) => needs.includes(task)));
  return facts[fits.find((name) => FIRST.includes(name)) ?? fits[0]];
}

/** The models that all nodes at the wire can use, and one more that stays whatever it is. */
function offered(node, every, kept) {
  const [needs, made] = [needed(node, 0), known(node)];
  const fits = (name) => !made[name] || needs.every((tasks) => tasks.some((task) => made[name].includes(task)));
  return every.filter((name) => name === kept || fits(name));
}

/** What the inputs at the wires of an output need, past what only leads them along. */
const needed = (node, slot) =>
  (node.outputs?.[slot]?.links ?? []).flatMap((id) => {
    const link = node.graph?.getLink(id), target = link && node.graph.getNodeById(link.target_id);
    if (target?.type === "Reroute") return needed(target, 0);
    const { required, optional } = target?.constructor.nodeData?.input ?? {}, { name } = target?.inputs[link.target_slot] ?? {};
    const tasks = (required?.[name] ?? optional?.[name])?.[1]?.[TASKS];
    return tasks ? [tasks] : [];
  });
