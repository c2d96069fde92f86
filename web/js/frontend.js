// The parts of the frontend that it does not publish, each in one place: what a later version names otherwise, is mended here.
import { app } from "../../../scripts/app.js";

/** Whether a workflow is being opened: what it says stays as it is. */
export const isOpening = () => Boolean(app.configuringGraph);

/** The first picture that a node has shown after a run, as the server names it. */
export const shownBy = (node) => app.nodeOutputs?.[String(node.id)]?.images?.[0];

const store = (name) => app.extensionManager._p?._s?.get(name);

/** Let the pictures in a node's output stand where the previews of its run do. */
export const endPreviews = ({ id, graph }) =>
  store("nodeOutput")?.revokePreviewsByLocatorId?.(graph.isRootGraph ? String(id) : `${graph.id}:${id}`);

/** The path of the workflow that a run was queued from, if this page has queued it. */
export const origin = (run) => store("execution")?.jobIdToSessionWorkflowPath?.get(run);

/** Let the classic canvas fold what Nodes 2.0 folds, without leaving room for it; the menu of the node shows it, as `toggle` does. */
export function foldAdvanced(node, isFolded) {
  for (const widget of node.widgets) widget.advanced = Boolean(widget.options?.advanced) && isFolded(widget);
  node.getLayoutWidgets = () => node.widgets.filter((widget) => node.isWidgetVisible(widget));
  node.showAdvanced ||= app.extensionManager.setting?.get("Comfy.Node.AlwaysShowAdvancedWidgets");
}

/** Let a node stand first in a search among equals, as if it were in use more; or behind better hits, by `worse`. */
export const favor = (definition, worse = 0) => (definition.postProcessSearchScores = ([kind, ...more]) => [kind + worse, -1, ...more]);

/** Act when the server is asked to stop, which the page does not say. */
export const onStop = (act) =>
  new PerformanceObserver((asked) => asked.getEntries().some(({ name }) => /\/(interrupt|cancel)$/.test(name)) && act())
    .observe({ type: "resource" });
