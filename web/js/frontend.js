// The frontend, and private parts of it: if a later version moves or renames them, only this file needs to change.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

export { api, app };

/** Whether a workflow is being opened, whose values must not change. */
export const isOpening = () => Boolean(app.configuringGraph);

/** The server's record of the first picture that a node showed after a run. */
export const shownBy = (node) => app.nodeOutputs?.[String(node.id)]?.images?.[0];

const store = (name) => app.extensionManager._p?._s?.get(name); // of Pinia, which holds the state of the frontend

const locatorOf = ({ id, graph }) => (graph.isRootGraph ? String(id) : `${graph.id}:${id}`);

/** Show a picture on a node in place of those in its output; the store's own previews stand below them in Nodes 2.0. */
export function showPreview(node, url) {
  const place = locatorOf(node), outputs = store("nodeOutput")?.nodeOutputs;
  app.nodePreviewImages[place] = [url];
  if (outputs?.[place]) outputs[place] = { ...outputs[place] }; // so that Nodes 2.0 looks again
  node.setDirtyCanvas?.(true, true);
}

/** Replace the previews of a run by the pictures in the node's output. */
export const endPreviews = (node) => store("nodeOutput")?.revokePreviewsByLocatorId?.(locatorOf(node));

/** The path of the workflow that a run was queued from, if this page queued it. */
export const workflowOf = (run) => store("execution")?.jobIdToSessionWorkflowPath?.get(run);

/** Make the classic canvas fold advanced widgets, as Nodes 2.0 does, without leaving space for them. */
export function foldAdvanced(node, isFolded) {
  for (const widget of node.widgets) widget.advanced = Boolean(widget.options?.advanced) && isFolded(widget);
  node.getLayoutWidgets = () => node.widgets.filter((widget) => node.isWidgetVisible(widget));
  node.showAdvanced ||= app.extensionManager.setting?.get("Comfy.Node.AlwaysShowAdvancedWidgets");
}

/** Rank a node first in a search among equal matches; or `worse` steps behind better matches. Scores are better if smaller. */
export function rankInSearch(definition, worse = 0) {
  definition.postProcessSearchScores = ([match, ...others]) => [match + worse, -1, ...others];
}

/** Rank a node that was found by one of its aliases right behind those with this word in their title. */
export function rankByAlias(definition) {
  definition.postProcessSearchScores = ([match, ...others]) => {
    const byAlias = match === 9 && others.at(-1) < 0.2; // 9: unlike its title; below 0.2: no letter differs
    return byAlias ? [2, 0, Infinity] : [match, 0, ...others];
  };
}

/** Call `act` when the page asks the server to stop. The page has no event for this, so watch its requests. */
export function onStop(act) {
  const isStop = ({ name }) => /\/(interrupt|cancel)$/.test(name);
  new PerformanceObserver((requests) => requests.getEntries().some(isStop) && act()).observe({ type: "resource" });
}
