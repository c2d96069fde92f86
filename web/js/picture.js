// The picture that comes along a wire, as far as the page knows it: of Load Image and Flow Example at once, of other nodes
// after a run.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { widgetOf } from "./canvas.js";

const PACK = new URL(import.meta.url).pathname.match(/\/extensions\/([^/]+)\//)?.[1];

/** The addresses of the pictures that a Flow Example gives; the host serves them with the stories. */
export function examplesOf(node) {
  const names = (PACK && menuOf(node).flowcore_files?.[widgetOf(node, "picture")?.value]) || [];
  return names.map((name) => api.apiURL(`/workflow_templates/${PACK}/${name}`));
}

const menuOf = (node) => node.constructor.nodeData?.input?.required?.picture?.[1] ?? {};

/** The address of a picture in one of the host's folders. */
export const addressOf = ({ filename, subfolder = "", type = "input" }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** The address of the picture at an input of a node; undefined if there is none yet. */
export function pictureAt(node, name) {
  const origin = originOf(node, name);
  if (!origin) return undefined;
  if (origin.type === "FlowcoreExample" && !menuOf(origin).flowcore_films?.includes(widgetOf(origin, "picture")?.value))
    return examplesOf(origin)[0]; // frames of a film are parts of its picture
  const file = widgetOf(origin, "image")?.value;
  if (origin.type === "LoadImage" && typeof file === "string" && file) {
    const [, path, type] = /^(.*?)(?: \[(\w+)\])?$/.exec(file);
    const cut = path.lastIndexOf("/");
    return addressOf({ filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(0, cut)), type });
  }
  const shown = app.nodeOutputs?.[String(origin.id)]?.images?.[0];
  return shown && addressOf(shown);
}

/** The node at the other end of an input's wire, past what only leads it along. */
export function originOf(node, name) {
  const input = node.inputs?.find((each) => each.name === name);
  const link = node.graph?.getLink(input?.link);
  const origin = link && node.graph.getNodeById(link.origin_id);
  return origin?.type === "Reroute" ? originOf(origin, origin.inputs[0]?.name) : origin;
}
