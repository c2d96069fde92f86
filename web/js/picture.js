// The picture at an input, if the page knows it: that of Load Image and Flow Example at once, that of other nodes after a
// run. A picture that is dropped on one of our nodes goes to the node that its picture comes from. Flow Example takes several.
import { consume, inputSpec, isOurs, make, nodeAround, patchAfter, requestSnapshot, setValue, widgetOf } from "./canvas.js";
import { api, app, shownBy } from "./frontend.js";

const JUST_NOW = 5000; // ms after which a new Load Video node is not from a drop
const GAP = [60, 80]; // pixels between a dropped film and other nodes, across and down
let dropped = 0; // time of the last drop of a file, in ms

app.registerExtension({
  name: "flowcore.picture",
  setup() {
    window.addEventListener("drop", () => (dropped = Date.now()), true);
    // The file inputs of Nodes 2.0, before the frontend sees what was chosen.
    window.addEventListener("click", ({ target }) => exampleOf(target) && (target.multiple = true), true);
    window.addEventListener("change", (event) => {
      const { target } = event, node = exampleOf(target);
      if (!node || target.files.length < 2) return;
      consume(event);
      uploadFolder(node, [...target.files]);
      target.value = "";
    }, true);
  },
  nodeCreated(node) {
    if (node.comfyClass === "LoadVideo" && Date.now() - dropped < JUST_NOW)
      patchAfter(node, "onAdded", () => setTimeout(() => connectFilm(node)));
    if (node.comfyClass === "FlowcoreExample") return takeSeveral(node);
    const input = isOurs(node) && imageInput(node);
    if (!input) return;
    for (const event of ["onDragOver", "onDragDrop"])
      node[event] = (...args) => originOf(node, input)?.[event]?.(...args) ?? false;
  },
});

/** Connect a film that was dropped on the canvas to a node that takes one, and put it below what was connected there. */
function connectFilm(film) {
  const videoInput = (node) => isOurs(node) && node.inputs.find(({ type }) => String(type).split(",").includes("VIDEO"))?.name;
  const node = film.graph?.nodes.find(videoInput);
  if (!node) return;
  film.connect(0, node, videoInput(node));
  const earlier = film.graph.nodes.filter((other) => other !== film && other.pos[0] < node.pos[0] && other.comfyClass);
  const left = Math.min(...earlier.map(({ pos }) => pos[0]), node.pos[0] - film.size[0] - GAP[0]);
  const column = earlier.filter(({ pos }) => pos[0] < left + film.size[0]);
  film.pos = [left, Math.max(node.pos[1], ...column.map(({ pos, size }) => pos[1] + size[1] + GAP[1]))];
  requestSnapshot();
}

/** The Flow Example that a file input is on. */
function exampleOf(element) {
  const node = element.type === "file" && nodeAround(element);
  return node?.comfyClass === "FlowcoreExample" ? node : undefined;
}

/** If several files or a folder are dropped on Flow Example, or chosen for upload, take them as a folder. */
function takeSeveral(node) {
  const button = widgetOf(node, "upload"); // of the classic renderer; the frontend's own takes one file
  if (button)
    button.callback = () => {
      const accept = "image/png,image/jpeg,image/webp";
      const onchange = ({ target: { files } }) => {
        if (files.length > 1 || !node.pasteFiles) uploadFolder(node, [...files]);
        else node.pasteFiles([...files]);
      };
      make("input", { type: "file", multiple: true, accept, onchange }).click();
    };
  const takeOne = node.onDragDrop;
  node.onDragDrop = async function (event) {
    const { items = [], files = [] } = event.dataTransfer ?? {};
    const folders = [...items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
    const images = [...files].filter(({ type }) => type.startsWith("image/")); // before any await, which empties the drop
    const pictures = [...images, ...(await Promise.all(folders.map(picturesIn))).flat()];
    if (pictures.length < 2 && !folders.length) return takeOne?.apply(this, arguments);
    if (!pictures.length) return false;
    await uploadFolder(node, pictures, folders[0]?.name);
    return true;
  };
}

/** Upload pictures as a folder of the input folder, called after the first unless it has a name, and choose that. */
async function uploadFolder(node, pictures, name = pictures[0].name.replace(/\.\w+$/, "")) {
  const now = new Date().toISOString().replace(/\D/g, "").slice(0, 14); // always a new one
  const folder = `flowcore/${name.replace(/[^\p{L}\p{N} _-]/gu, "_")} ${now}`;
  for (const [number, file] of pictures.entries()) {
    const body = new FormData(); // with numbers, because names may repeat, and to keep the order
    body.append("image", file, `${String(number + 1).padStart(4, "0")} ${file.name}`);
    body.append("subfolder", folder);
    await api.fetchApi("/upload/image", { method: "POST", body });
  }
  const choice = pictureWidget(node);
  choice.options.values.push(folder);
  setValue(node, choice, folder);
}

/** The pictures in a folder that was dropped, at any depth. */
async function picturesIn(entry) {
  const reader = entry.createReader?.(), entries = [];
  if (!reader) return [await new Promise((...ends) => entry.file(...ends))].filter(({ type }) => type.startsWith("image/"));
  // The entries come in parts, until an empty one.
  for (let part; (part = await new Promise((...ends) => reader.readEntries(...ends))).length; ) entries.push(...part);
  return (await Promise.all(entries.sort((a, b) => (a.name < b.name ? -1 : 1)).map(picturesIn))).flat();
}

const pathOf = ({ filename, subfolder = "", type = "input" }) => `/view?${new URLSearchParams({ filename, subfolder, type })}`;

/** The URL of a picture in one of the host's folders. */
export const addressOf = (picture) => api.apiURL(pathOf(picture));

/** Whether the file of a picture exists, as a promise. */
export const isThere = (picture) => api.fetchApi(pathOf(picture), { method: "HEAD" }).then(({ ok }) => ok, () => false);

/** The name of a node's input for pictures. */
export const imageInput = (node) => node.inputs?.find(({ type }) => /^IMAGE\b/.test(type))?.name;

/** The widget of Load Image or Flow Example that names its picture; undefined for other nodes. */
export const fileWidget = (origin) => (["LoadImage", "FlowcoreExample"].includes(origin?.type) ? pictureWidget(origin) : undefined);

/** The URL of the picture at an input of a node; undefined if it is not known yet. */
export function pictureAt(node, name) {
  const origin = originOf(node, name);
  if (!origin) return undefined;
  const file = fileWidget(origin)?.value;
  if (typeof file === "string" && file) {
    const { flowcore_files: examples, flowcore_films: films } = inputSpec(origin, "picture")[1] ?? {};
    const isSingle = examples?.[file] ? examples[file].length === 1 : /\.\w+( \[\w+\])?$/.test(file); // no batch or folder
    if (films?.includes(file) || !isSingle) return undefined;
    const slash = file.lastIndexOf("/"); // the host handles a suffix such as in "a.png [output]"
    return addressOf({ filename: file.slice(slash + 1), subfolder: file.slice(0, Math.max(0, slash)) });
  }
  const shown = shownBy(origin);
  return shown && addressOf(shown);
}

/** The widget with the picture of Load Image or Flow Example. */
export const pictureWidget = (node) => node && (widgetOf(node, "image") ?? widgetOf(node, "picture"));

/** The node at the other end of an input's wire, past reroutes and subgraph inputs. */
export function originOf(node, name) {
  const input = node.inputs?.find((each) => each.name === name);
  const link = node.graph?.getLink(input?.link);
  if (link && link.origin_id === node.graph.inputNode?.id) { // an input of a subgraph: look at the first node of that
    const outside = app.rootGraph.nodes.find(({ subgraph }) => subgraph === node.graph);
    return outside && originOf(outside, node.graph.inputs[link.origin_slot]?.name);
  }
  const origin = link && node.graph.getNodeById(link.origin_id);
  return origin?.type === "Reroute" ? originOf(origin, origin.inputs[0]?.name) : origin;
}

/**
 * Watch a widget of the node at an input: call `act` when this node is opened or connected, and when the widget changes.
 * `act` gets the widget, if there is one, and whether it has changed.
 */
export function onUpstreamChoice(node, input, widgetOfOrigin, act) {
  const watched = new WeakSet();
  let last, value;
  const update = () => {
    if (node.graph?.getNodeById(node.id) !== node) return; // replaced by another node with the same id
    const widget = widgetOfOrigin(originOf(node, input));
    if (widget && !watched.has(widget)) patchAfter(widget, "callback", update);
    if (widget) watched.add(widget);
    const hasChanged = Boolean(widget) && widget === last && widget.value !== value;
    [last, value] = [widget, widget?.value];
    act(widget, hasChanged);
    if (hasChanged) requestSnapshot(); // a drop is a change that the frontend does not notice
  };
  const later = () => setTimeout(update); // when the wires and values are there
  for (const event of ["onConfigure", "onConnectionsChange"]) patchAfter(node, event, later);
  later();
}
