// The parts of the frontend that it does not publish, each in one place: what a later version names otherwise, is mended here.
import { app } from "../../../scripts/app.js";

/** Whether a workflow is being opened: what it says stays as it is. */
export const isOpening = () => Boolean(app.configuringGraph);

/** The first picture that a node has shown after a run, as the server names it. */
export const shownBy = (node) => app.nodeOutputs?.[String(node.id)]?.images?.[0];

/** The path of the workflow that a run was queued from, if this page has queued it. */
export const origin = (run) => app.extensionManager._p?._s?.get("execution")?.jobIdToSessionWorkflowPath?.get(run);

/** Act when the server is asked to stop, which the page does not say. */
export const onStop = (act) =>
  new PerformanceObserver((asked) => asked.getEntries().some(({ name }) => /\/(interrupt|cancel)$/.test(name)) && act())
    .observe({ type: "resource" });
