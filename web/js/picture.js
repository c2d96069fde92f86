// The picture that comes along a wire, as far as the page knows it: of Load Image and Flow Example at once, of other nodes
// after a run. A picture that is dropped on a node of ours goes where its picture comes from.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { after, isOurs, widgetOf } from "./canvas.js";

app.registerExtension({
  name: "flowcore.picture",
  nodeCreated(node) {
    const input = isOurs(node) && node.inputs?.find(({ type }) => type === "IMAGE")?.name;
    if (!input) return;
    for (const event of ["onDragOver", "onDragDrop"])
      node[event] = (...dropped) => originOf(node, input)?.[event]?.(...dropped) ?? false;
  },
});

/** The address of a picture in one of the host's folders. */
export const addressOf = ({ filename, subfolder = "", type = "input" }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** The address of the picture at an input of a node; undefined if there is none yet. */
export function pictureAt(node, name) {
  const origin = originOf(node, name);
  if (!origin) return undefined;
  const file = choiceOf(origin)?.value;
  if (["LoadImage", "FlowcoreExample"].includes(origin.type) && typeof file === "string" && file) {
    const { flowcore_files: ours, flowcore_films: films } = origin.constructor.nodeData?.input?.required?.picture?.[1] ?? {};
    if (films?.includes(file) || ours?.[file]?.length > 1) return undefined; // the page shows another, or all of them
    const cut = file.lastIndexOf("/"); // what may stand behind the name, as in "a.png [output]", is for the host
    return addressOf({ filename: file.slice(cut + 1), subfolder: file.slice(0, Math.max(0, cut)) });
  }
  const shown = app.nodeOutputs?.[String(origin.id)]?.images?.[0];
  return shown && addressOf(shown);
}

/** The widget in which Load Image or Flow Example has its picture chosen. */
export const choiceOf = (node) => node && (widgetOf(node, "image") ?? widgetOf(node, "picture"));

/** The node at the other end of an input's wire, past what only leads it along. */
export function originOf(node, name) {
  const input = node.inputs?.find((each) => each.name === name);
  const link = node.graph?.getLink(input?.link);
  const origin = link && node.graph.getNodeById(link.origin_id);
  return origin?.type === "Reroute" ? originOf(origin, origin.inputs[0]?.name) : origin;
}

/**
 * Act on the choice made where an input's wire comes from: when the node is opened or connected, and when another choice
 * is made. `act` gets its widget, if any, and whether another choice was made there.
 */
export function onChoice(node, input, choiceOf, act) {
  const followed = new WeakSet(); // widgets
  let last, value;
  const follow = () => setTimeout(() => { // when the wires and values are there
    if (node.graph?.getNodeById(node.id) !== node) return; // its values would be those of a node of that number
    const choice = choiceOf(originOf(node, input));
    if (choice && !followed.has(choice)) after(choice, "callback", () => node.graph && follow());
    if (choice) followed.add(choice);
    const another = Boolean(choice) && choice === last && choice.value !== value;
    [last, value] = [choice, choice?.value];
    act(choice, another);
  });
  for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, follow);
  follow();
}
