// The picture that comes along a wire, as far as the page knows it: of Load Image and Flow Example at once, of other nodes
// after a run. A picture that is dropped on a node of ours goes where its picture comes from.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { after, changed, isOurs, set, widgetOf } from "./canvas.js";
import { shownBy } from "./frontend.js";

let dropped = 0; // when a file was dropped, in ms

app.registerExtension({
  name: "flowcore.picture",
  setup: () => window.addEventListener("drop", () => (dropped = Date.now()), true),
  nodeCreated(node) {
    if (node.comfyClass === "LoadVideo" && Date.now() - dropped < 5000) after(node, "onAdded", () => setTimeout(() => connectFilm(node)));
    if (node.comfyClass === "FlowcoreExample") return takeSeveral(node);
    const input = isOurs(node) && node.inputs?.find(({ type }) => /^IMAGE\b/.test(type))?.name;
    if (!input) return;
    for (const event of ["onDragOver", "onDragDrop"])
      node[event] = (...dropped) => originOf(node, input)?.[event]?.(...dropped) ?? false;
  },
});

/** Connect a film that was dropped on the canvas to what takes one, in place of what is there, and put it below that. */
function connectFilm(film) {
  const takes = (node) => isOurs(node) && node.inputs.find(({ type }) => String(type).split(",").includes("VIDEO"))?.name;
  const node = film.graph?.nodes.find(takes);
  if (!node) return;
  film.connect(0, node, takes(node));
  const before = film.graph.nodes.filter((other) => other !== film && other.pos[0] < node.pos[0] && other.comfyClass);
  const left = Math.min(...before.map(({ pos }) => pos[0]), node.pos[0] - film.size[0] - 60);
  const column = before.filter(({ pos }) => pos[0] < left + film.size[0]);
  film.pos = [left, Math.max(node.pos[1], ...column.map(({ pos, size }) => pos[1] + size[1] + 80))];
  changed();
}

/** Let several files, or a folder, that are dropped on Flow Example become a folder of the input folder, which it shows. */
function takeSeveral(node) {
  const one = node.onDragDrop;
  node.onDragDrop = async function (event) {
    const { items = [], files = [] } = event.dataTransfer ?? {};
    const folders = [...items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
    const given = [...files].filter(({ type }) => type.startsWith("image/")); // after this the drop is forgotten
    const pictures = [...given, ...(await Promise.all(folders.map(picturesIn))).flat()];
    if (pictures.length < 2 && !folders.length) return one?.apply(this, arguments);
    if (!pictures.length) return false;
    const name = (folders[0]?.name ?? pictures[0].name.replace(/\.\w+$/, "")).replace(/[^\p{L}\p{N} _-]/gu, "_");
    const folder = `flowcore/${name} ${new Date().toISOString().replace(/\D/g, "").slice(0, 14)}`; // never one that is there
    for (const [number, file] of pictures.entries()) {
      const body = new FormData(); // numbered, since names of several folders may be alike, and sorting them keeps their order
      body.append("image", file, `${String(number + 1).padStart(4, "0")} ${file.name}`);
      body.append("subfolder", folder);
      await api.fetchApi("/upload/image", { method: "POST", body });
    }
    const choice = choiceOf(node);
    choice.options.values.push(folder);
    set(node, choice, folder);
    return true;
  };
}

/** The pictures in a folder that was dropped, and in those in it. */
async function picturesIn(entry) {
  const [reader, found] = [entry.createReader?.(), []];
  if (!reader) return [await new Promise((...ends) => entry.file(...ends))].filter(({ type }) => type.startsWith("image/"));
  for (let part; (part = await new Promise((...ends) => reader.readEntries(...ends))).length; ) found.push(...part);
  return (await Promise.all(found.sort((a, b) => (a.name < b.name ? -1 : 1)).map(picturesIn))).flat();
}

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
    // Of films, batches and folders the page shows another picture, or all of them.
    if (films?.includes(file) || (ours?.[file] ? ours[file].length > 1 : !/\.\w+( \[\w+\])?$/.test(file))) return undefined;
    const cut = file.lastIndexOf("/"); // what may stand behind the name, as in "a.png [output]", is for the host
    return addressOf({ filename: file.slice(cut + 1), subfolder: file.slice(0, Math.max(0, cut)) });
  }
  const shown = shownBy(origin);
  return shown && addressOf(shown);
}

/** The widget in which Load Image or Flow Example has its picture chosen. */
export const choiceOf = (node) => node && (widgetOf(node, "image") ?? widgetOf(node, "picture"));

/** The node at the other end of an input's wire, past what only leads it along. */
export function originOf(node, name) {
  const input = node.inputs?.find((each) => each.name === name);
  const link = node.graph?.getLink(input?.link);
  if (link && link.origin_id === node.graph.inputNode?.id) { // into a subgraph: of the first node that stands for it
    const outside = app.rootGraph.nodes.find(({ subgraph }) => subgraph === node.graph);
    return outside && originOf(outside, node.graph.inputs[link.origin_slot]?.name);
  }
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
  const follow = () => {
    if (node.graph?.getNodeById(node.id) !== node) return; // its values would be those of a node of that number
    const choice = choiceOf(originOf(node, input));
    if (choice && !followed.has(choice)) after(choice, "callback", follow);
    if (choice) followed.add(choice);
    const another = Boolean(choice) && choice === last && choice.value !== value;
    [last, value] = [choice, choice?.value];
    act(choice, another);
    if (another) changed(); // also by a drop, which the frontend does not notice
  };
  const later = () => setTimeout(follow); // when the wires and values are there
  for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, later);
  later();
}
