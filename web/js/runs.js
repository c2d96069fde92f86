// What a run has given, on the workflow that it belongs to. What the server says about a run names nodes by their number,
// and a workflow that was opened meanwhile has nodes of the same numbers.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { after, isOurs } from "./canvas.js";
import { endPreviews, origin } from "./frontend.js";

const KEPT = 64; // runs that are asked of the server's history when the page opens

let running; // id of the run that the server's last messages were about
const begun = new Set(); // ids of runs that the history had not yet when it was asked
let history; // what it held when it was last asked: a promise of run to {workflow, nodes, outputs}
let asking; // a node of the workflow whose run waits for the server's answer: the run may be quicker than that

const nodes = () => (app.rootGraph ?? app.graph).nodes;

for (const event of ["execution_start", "progress_state"]) // the second is heard after a reload, too
  api.addEventListener(event, ({ detail }) => begun.add((running = detail?.prompt_id)));
api.addEventListener("promptQueueing", () => ([asking] = nodes()));
api.addEventListener("promptQueued", () => (asking = undefined));

/** Whether a run is of the workflow on the canvas, as far as the page knows: it may have been queued before a reload. */
export function isHere(run = running) {
  const from = origin(run);
  return from ? from === app.extensionManager.workflow?.activeWorkflow?.path : !asking || nodes().includes(asking);
}

const listeners = [];

/**
 * Call a function with a node of ours, its output and the run: after a run of this workflow, and when a workflow is opened
 * again, by a reload, in its tab or by an undo. Then a last argument lists what every run has given, oldest first: [output, run].
 */
export const onResult = (listener) => listeners.push(listener);

app.registerExtension({
  name: "flowcore.runs",
  nodeCreated(node) {
    if (!isOurs(node)) return;
    after(node, "onExecuted", (output) => {
      if (output?.images) endPreviews(node);
      if (isHere()) handle(node, output, running);
    });
  },
  onNodeOutputsUpdated(outputs) {
    for (const [place, output] of Object.entries(outputs)) handle(nodeAt(place), output, running);
  },
  afterConfigureGraph: recall,
});

function handle(node, output, run, every) {
  if (isOurs(node) && output) for (const listener of listeners) listener(node, output, run, every);
}

/** Give the nodes of the workflow that is open what its runs have given, as long as the server remembers them. */
async function recall() {
  const { id, subgraphs } = app.rootGraph, graphs = [app.rootGraph, ...(subgraphs?.values() ?? [])];
  if (!graphs.some((graph) => graph.nodes.some(isOurs))) return;
  const places = new Map(), runs = await (history = read(history));
  if (app.rootGraph.id !== id) return;
  for (const [run, { workflow, nodes, outputs }] of runs)
    for (const [place, output] of workflow === id ? Object.entries(outputs) : []) {
      const same = nodeAt(place)?.comfyClass === nodes[place]?.class_type;
      if (same) places.set(place, [...(places.get(place) ?? []), [output, run]]);
    }
  for (const [place, every] of places) handle(nodeAt(place), ...every.at(-1), every);
}

/** Ask the server for runs that are not known yet. */
async function read(before) {
  const runs = (await before) ?? new Map();
  const asked = before ? [...begun].map((run) => `/${run}`) : [`?max_items=${KEPT}`];
  const answers = asked.map((which) => api.fetchApi(`/history${which}`).then((answer) => answer.json()).catch(() => ({})));
  for (const [run, { prompt, outputs }] of (await Promise.all(answers)).flatMap(Object.entries)) {
    const [, , nodes, extra] = prompt;
    runs.set(run, { workflow: extra?.extra_pnginfo?.workflow?.id, nodes, outputs });
    begun.delete(run);
  }
  return runs;
}

/** The node of a place that the server names: a number, or numbers along subgraphs, or a subgraph's id and a number. */
export function nodeAt(place) {
  const steps = String(place).split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const step of steps.slice(0, -1)) graph = graph?.subgraphs?.get(step) ?? graph?.getNodeById(step)?.subgraph;
  return graph?.getNodeById(steps.at(-1));
}
