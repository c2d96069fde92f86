// What a run has given, on the workflow that it belongs to. What the server says about a run names nodes by their number, and a workflow that was
// opened meanwhile has nodes of the same numbers.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { after, isOurs } from "./canvas.js";

const owners = new Map(); // from the id of a run to the workflow that it was queued from
const queueing = new Set(); // requests without an answer yet: the run may be quicker than it
let running; // id of the run that the server's last messages were about

const opened = () => app.extensionManager?.workflow?.activeWorkflow;

const queue = api.queuePrompt;
api.queuePrompt = async function () {
  const workflow = opened();
  const asked = queue.apply(this, arguments);
  queueing.add(asked);
  try {
    const answer = await asked;
    if (workflow) owners.set(answer?.prompt_id, workflow);
    return answer;
  } finally {
    queueing.delete(asked);
  }
};
api.addEventListener("execution_start", (event) => {
  running = event.detail?.prompt_id;
});

/** The run that the server is at, as far as this page has heard. */
export const current = () => running;

/** Whether a run was queued from the workflow on the canvas: true, false, or undefined if this page did not queue it. */
export async function isHere(run) {
  if (!owners.has(run)) await Promise.allSettled([...queueing]);
  return owners.has(run) ? owners.get(run) === opened() : undefined;
}

const hearers = [];

/**
 * Call a function with a node of ours and its output: after a run of this workflow, and when the frontend remembers the
 * output of a workflow that is opened again.
 */
export const onResult = (hear) => hearers.push(hear);

app.registerExtension({
  name: "flowcore.runs",
  nodeCreated(node) {
    if (!isOurs(node)) return;
    after(node, "onExecuted", (output) => {
      isHere(current()).then((here) => here !== false && heard(node, output));
    });
  },
  onNodeOutputsUpdated(outputs) {
    for (const [place, output] of Object.entries(outputs)) heard(nodeAt(place), output);
  },
});

function heard(node, output) {
  if (isOurs(node) && output) for (const hear of hearers) hear(node, output);
}

/** The node of a place that the server names: a number, or numbers along subgraphs, or a subgraph's id and a number. */
export function nodeAt(place) {
  const steps = String(place).split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const step of steps.slice(0, -1)) graph = graph?.subgraphs?.get(step) ?? graph?.getNodeById(step)?.subgraph;
  return graph?.getNodeById(steps.at(-1));
}
