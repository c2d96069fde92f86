// The picture that comes along a wire, as far as the page knows it: of Load Image at once, of other nodes after a run.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { widgetOf } from "./canvas.js";

/** The address of a picture in one of the host's folders. */
export const addressOf = ({ filename, subfolder = "", type = "input" }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** The address of the picture at an input of a node; undefined if there is none yet. */
export function pictureAt(node, name) {
  const origin = originOf(node, name);
  if (!origin) return undefined;
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
  const link = input?.link == null ? undefined : node.graph?.links?.get?.(input.link) ?? node.graph?.links?.[input.link];
  const origin = link && node.graph.getNodeById(link.origin_id);
  return origin?.type === "Reroute" ? originOf(origin, origin.inputs[0]?.name) : origin;
}
