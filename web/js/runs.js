// What a run has given, on the workflow that it belongs to. What the server says about a run names nodes by their number,
// and a workflow that was opened meanwhile has nodes of the same numbers.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { after, isOurs } from "./canvas.js";
import { endPreviews, origin } from "./frontend.js";

let running; // id of the run that the server's last messages were about
let asking; // a node of the workflow whose run waits for the server's answer: the run may be quicker than that

const nodes = () => (app.rootGraph ?? app.graph).nodes;

api.addEventListener("execution_start", ({ detail }) => (running = detail?.prompt_id));
api.addEventListener("promptQueueing", () => ([asking] = nodes()));
api.addEventListener("promptQueued", () => (asking = undefined));

/** Whether a run is of the workflow on the canvas, as far as the page knows: it may have been queued before a reload. */
export function isHere(run = running) {
  const from = origin(run);
  return from ? from === app.extensionManager.workflow?.activeWorkflow?.path : !asking || nodes().includes(asking);
}

const listeners = [];

/**
 * Call a function with a node of ours, its output and the run: after a run of this workflow, and when the frontend remembers the
 * output of a workflow that is opened again.
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
});

function handle(node, output, run) {
  if (isOurs(node) && output) for (const listener of listeners) listener(node, output, run);
}

/** The node of a place that the server names: a number, or numbers along subgraphs, or a subgraph's id and a number. */
export function nodeAt(place) {
  const steps = String(place).split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const step of steps.slice(0, -1)) graph = graph?.subgraphs?.get(step) ?? graph?.getNodeById(step)?.subgraph;
  return graph?.getNodeById(steps.at(-1));
}
