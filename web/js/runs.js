// Gives the outputs of runs to the nodes that they belong to. The server names nodes by id, but another workflow, opened in the
// meantime, has nodes with the same ids.
import { patchAfter, isOurs } from "./canvas.js";
import { api, app, endPreviews, workflowOf } from "./frontend.js";

const RECALLED = 64; // runs that are read from the server's history when the page opens

let running; // id of the run that the server's latest messages are about
const unread = new Set(); // ids of runs that were not in the history yet when it was last read
let history; // a promise of what was read of the server's history: from a run to {workflow, nodes, outputs}
let queueing; // a node of the workflow that is being queued; its run may start before the server has answered

const nodes = () => (app.rootGraph ?? app.graph).nodes;

for (const event of ["execution_start", "progress_state"]) // the second is heard after a reload, too
  api.addEventListener(event, ({ detail }) => {
    running = detail?.prompt_id;
    unread.add(running);
  });
api.addEventListener("promptQueueing", () => ([queueing] = nodes()));
api.addEventListener("promptQueued", () => (queueing = undefined));

/** Whether a run is of the workflow on the canvas. If it was queued before a reload, the page does not know, and says yes. */
export function isHere(run = running) {
  const from = workflowOf(run);
  if (from) return from === app.extensionManager.workflow?.activeWorkflow?.path;
  return !queueing || nodes().includes(queueing);
}

const startListeners = [];

/** Register a function that gets one of our nodes when a run of this workflow begins that will compute it anew. */
export const onStart = (listener) => startListeners.push(listener);

// Sent at the beginning of every run, with the paths of nodes whose results are known.
api.addEventListener("execution_cached", ({ detail: { nodes: cached, prompt_id: run } }) => {
  if (!isHere(run)) return;
  const paths = new Set(cached.map(String));
  for (const [path, node] of nodesByPath()) if (isOurs(node) && !paths.has(path)) for (const listener of startListeners) listener(node);
});

/** Register a function that is called when any run ends: all is done, a node failed, or a person stopped it. */
export function onEnd(listener) {
  for (const end of ["success", "error", "interrupted"]) api.addEventListener(`execution_${end}`, listener);
}

/** All nodes that are not switched off, by the paths that the server names. */
function* nodesByPath(graph = app.rootGraph ?? app.graph, before = "") {
  for (const node of graph.nodes) {
    if (node.mode !== LiteGraph.ALWAYS) continue;
    yield [`${before}${node.id}`, node];
    if (node.subgraph) yield* nodesByPath(node.subgraph, `${before}${node.id}:`);
  }
}

const listeners = [];

/**
 * Register a function that gets one of our nodes, its output and the run's id: after a run of this workflow, and when a workflow
 * is opened again, by a reload, a switch of tabs or an undo. Then a fourth argument lists [output, run] of all runs, oldest first.
 */
export const onResult = (listener) => listeners.push(listener);

app.registerExtension({
  name: "flowcore.runs",
  nodeCreated(node) {
    if (!isOurs(node)) return;
    patchAfter(node, "onExecuted", (output) => {
      if (output?.images) endPreviews(node);
      if (isHere()) notifyListeners(node, output, running);
    });
  },
  onNodeOutputsUpdated(outputs) {
    for (const [path, output] of Object.entries(outputs)) notifyListeners(nodeAt(path), output, running);
  },
  afterConfigureGraph: recall,
});

function notifyListeners(node, output, run, every) {
  if (isOurs(node) && output) for (const listener of listeners) listener(node, output, run, every);
}

/** Give the nodes of the open workflow the outputs of its runs that the server remembers. */
async function recall() {
  const { id, subgraphs } = app.rootGraph, graphs = [app.rootGraph, ...(subgraphs?.values() ?? [])];
  if (!graphs.some((graph) => graph.nodes.some(isOurs))) return;
  const resultsByPath = new Map(), runs = await (history = readHistory(history));
  if (app.rootGraph.id !== id) return;
  for (const [run, { workflow, nodes, outputs }] of runs)
    for (const [path, output] of workflow === id ? Object.entries(outputs) : []) {
      const isSameNode = nodeAt(path)?.comfyClass === nodes[path]?.class_type;
      if (isSameNode) resultsByPath.set(path, [...(resultsByPath.get(path) ?? []), [output, run]]);
    }
  for (const [path, every] of resultsByPath) notifyListeners(nodeAt(path), ...every.at(-1), every); // the last result, and all
}

/** Read runs from the server's history that are not known yet; `known` is the promise of an earlier call, if any. */
async function readHistory(known) {
  const runs = (await known) ?? new Map();
  const queries = known ? [...unread].map((run) => `/${run}`) : [`?max_items=${RECALLED}`];
  const answers = queries.map((which) => api.fetchApi(`/history${which}`).then((answer) => answer.json()).catch(() => ({})));
  for (const [run, { prompt, outputs }] of (await Promise.all(answers)).flatMap(Object.entries)) {
    const [, , nodes, extra] = prompt;
    runs.set(run, { workflow: extra?.extra_pnginfo?.workflow?.id, nodes, outputs });
    unread.delete(run);
  }
  return runs;
}

/** The node at a path that the server names: an id, ids through subgraphs such as "3:5", or a subgraph's id and an id. */
export function nodeAt(path) {
  const steps = String(path).split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const step of steps.slice(0, -1)) graph = graph?.subgraphs?.get(step) ?? graph?.getNodeById(step)?.subgraph;
  return graph?.getNodeById(steps.at(-1));
}
