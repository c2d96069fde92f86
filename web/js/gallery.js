// The pictures of the latest runs on the node that made them: a viewer that compares two, and a gallery of all below it. A click
// picks one, which is then passed on alone. Only the widget `pick` holds this, so scripts and saved workflows need no page. The
// values of the picture's run are restored, too, so that the host finds that run in its cache and computes nothing.
import {
  areaOf, canFollowModel, hasPick, inputSpec, make, patchAfter, post, redraw, setLabel, setValue, sharpen, translate, widgetOf, wired,
} from "./canvas.js";
import { api, app } from "./frontend.js";
import { addressOf, isThere, pictureWidget, onUpstreamChoice } from "./picture.js";
import { Live } from "./live.js";
import { translateMessage } from "./messages.js";
import { isHere, nodeAt, onEnd, onResult, onStart } from "./runs.js";
import { show as showText } from "./text.js";
import { Viewer } from "./viewer.js";

const GALLERY = "flowcore_gallery"; // the key in a node's output
const MAX_PICTURES = 64; // on a node; the host sends no more per run
const IGNORED_INPUTS = / (seed|pick|samples|seeds)$/; // inputs that do not make runs different
const SAVING = "flowcore_save"; // id of the node that saves a picture, which is on no canvas

app.registerExtension({
  name: "flowcore.gallery",
  nodeCreated(node) {
    if (!hasPick(node)) return;
    addGallery(node);
    patchAfter(node, "onConfigure", () => markPicked(node));
    // Here the classic canvas would draw previews below the viewer.
    node.onDrawBackground = () => {};
  },
  setup() {
    api.addEventListener("b_preview_with_metadata", ({ detail: { displayNodeId: path, blob } }) => {
      const first = !previewed.has(path);
      previewed.add(path);
      if (blob && isHere()) showPreview(nodeAt(path), blob, first);
    });
    api.addEventListener("execution_start", () => {
      previewed.clear();
      for (const gallery of previewing) {
        clearPreviews(gallery); // of a run that did not finish
        gallery.viewer.show(gallery.pictures);
      }
      previewing.clear();
    });
    onEnd(async ({ type }) => {
      const unfinished = type === "execution_success" ? "" : await translate("unfinished");
      if (unfinished) for (const gallery of previewing) sayUnfinished(gallery, unfinished);
      for (const gallery of outdated) { // the run made no pictures here
        setOutdated(gallery, false);
        if (!previewing.has(gallery)) gallery.viewer.show(gallery.pictures);
      }
    });
  },
});

// While another photograph is enlarged, the pictures of the one before are not shown.
onStart((node) => {
  const gallery = galleries.get(node);
  const sent = gallery?.pictures.findLast(({ run }) => run === gallery.last)?.sent ?? {};
  const isOther = ([path, { class_type: kind, inputs }]) => {
    const source = ["LoadImage", "FlowcoreExample"].includes(kind) && nodeAt(path), widget = pictureWidget(source);
    return source == null || (widget && widget.value !== inputs[widget.name]);
  };
  if (!Object.entries(sent).some(isOther)) return;
  setOutdated(gallery, true);
  translate("running").then((text) => (gallery.viewer.hint.textContent = text));
  gallery.viewer.show([]);
});

onResult((node, output, run, every) => showRuns(node, every ?? [[output, run]], Boolean(every)));

const galleries = new WeakMap(); // by node
const previewing = new Set(); // galleries that show previews
const outdated = new Set(); // galleries whose pictures are of another photograph than the one that runs
const previewed = new Set(); // paths of the nodes for which this run has sent a preview

// --- pictures

/** Show the pictures of a run after those of earlier runs; or recall those of all runs that the server remembers, oldest first. */
async function showRuns(node, results, recalled) {
  const gallery = galleries.get(node);
  if (!gallery || !results.some(([output]) => output[GALLERY]?.length)) return;
  const sourceName = await translate("source");
  let pictures = results.flatMap(([output, run]) => (output[GALLERY] ?? []).map((picture) => ({
    ...picture, run, sent: output.flowcore_sent?.[0] ?? {}, sourceName, url: addressOf(picture.full ?? picture),
    source: picture.source && addressOf(picture.source),
  })));
  if (recalled) pictures = await existing(latest(pictures));
  const [, run] = results.at(-1);
  const pickedRun = (recalled && widgetOf(node, "pick").value && (await runWithCurrentValues(pictures))) || run;
  const ofRun = pictures.filter((picture) => picture.run === run);
  const isNew = previewing.delete(gallery); // a run with previews, not another pick
  const rows = ofRun[0]?.rows; // of a table of temperatures and seeds, which is shown alone, a column per temperature
  const all = [...(recalled ? pictures : []), ...gallery.pictures, ...pictures];
  gallery.pictures = latest(rows ? ofRun : all.filter((picture) => !picture.rows));
  if (!gallery.pictures.length) return;
  Object.assign(gallery, { picked: pickedRun, last: run }); // the run of the pick, and that of live pictures
  await nameAndGroup(gallery.pictures);
  clearPreviews(gallery);
  setOutdated(gallery, false);
  gallery.grid.style.grid = rows ? `repeat(${rows}, 52px) / auto-flow minmax(0, 1fr)` : "";
  const several = gallery.pictures.length > 1 ? gallery.pictures : [];
  // A heading where one begins, in a list; else an empty list.
  const headOf = ({ head }, k) => (head !== several[k - 1]?.head && head ? [make("p", {}, head)] : []);
  gallery.grid.replaceChildren(...several.flatMap((picture, k) => [...headOf(picture, k), pictureButton(node, gallery, picture)]));
  const { viewer } = gallery;
  const stays = !isNew && ofRun.includes(gallery.pictures[viewer.right]);
  const inView = pickedOf(node, gallery) ?? (stays ? undefined : ofRun[0]);
  viewer.show(gallery.pictures, inView ? gallery.pictures.indexOf(inView) : viewer.right);
  viewer.onShow(viewer.right);
  markPicked(node);
}

function setOutdated(gallery, isOutdated) {
  gallery.grid.classList.toggle("outdated", isOutdated);
  outdated[isOutdated ? "add" : "delete"](gallery);
}

/** The latest pictures; of those with the same file, the last. */
const latest = (pictures) => [...new Map(pictures.map((picture) => [picture.filename, picture])).values()].slice(-MAX_PICTURES);

/** Those pictures whose files still exist in the temp folder, which may be emptied. */
async function existing(pictures) {
  const answers = await Promise.all(pictures.map(isThere));
  return pictures.filter((_, k) => answers[k]);
}

/** The latest run of some pictures that was sent with the values that the nodes have now. */
async function runWithCurrentValues(pictures) {
  const { output: prompt } = await app.graphToPrompt();
  const isSame = (path, [name, value]) => String(prompt[path]?.inputs[name]) === String(value);
  const allSame = ([path, { inputs }]) => Object.entries(inputs).every((input) => isSame(path, input));
  return pictures.findLast(({ sent }) => Object.entries(sent).every(allSame))?.run;
}

/** Say at the previews of a run that was stopped that they are no results. */
function sayUnfinished({ viewer }, head) {
  viewer.show(viewer.pictures.map((picture) => ({ ...picture, head })));
}

function clearPreviews(gallery) {
  for (const url of [gallery.source, ...gallery.previews.splice(0)]) URL.revokeObjectURL(url);
  gallery.source = undefined;
  for (const button of gallery.grid.querySelectorAll(":disabled")) button.remove();
}

/**
 * Give pictures a name, with the values in which their runs differ, except seeds. And group them for the arrow keys, each group
 * under a heading: the pictures of a run; or runs of one picture each that differ only in seeds.
 */
async function nameAndGroup(pictures) {
  const flat = ([path, { inputs }]) => Object.entries(inputs).map(([name, value]) => [`${path} ${name}`, value]);
  const runs = new Map(pictures.map(({ run, sent }) => [run, new Map(Object.entries(sent).flatMap(flat))]));
  const [first, ...others] = runs.values();
  const keys = [...first.keys()].filter((key) => !IGNORED_INPUTS.test(key) && others.some((run) => run.get(key) !== first.get(key)));
  for (const picture of pictures) {
    const { seed, frame, temperature, image, score, run, look } = picture;
    const nameKey = temperature !== undefined ? "cell" : frame ? "frame" : seed !== undefined && "seed";
    const imageName = image !== undefined && translate("image", { image: image + 1 });
    const lookName = look && translateMessage({ template: look, values: {} });
    const isLike = (other) => other.run === run && other.look === look && other.image === image;
    Object.assign(picture, { lookName, isOnlyOfLook: look && pictures.filter(isLike).length === 1 });
    const facts = await Promise.all([imageName, lookName, nameKey && translate(nameKey, picture), score]);
    const values = await Promise.all(keys.map((key) => describe(key, runs.get(run).get(key))));
    picture.name = [...facts, ...values].filter(Boolean).join(" · ");
    picture.title = values.filter(Boolean).join(" · ");
  }
  const groupOf = ({ run, title }) => (pictures.filter((other) => other.run === run).length > 1 ? run : title);
  const groups = [...Map.groupBy(pictures, groupOf)];
  for (const [k, [group, members]] of groups.entries()) {
    const head = groups.length > 1 && (await translate("run", { run: k + 1, runs: groups.length }));
    for (const picture of members) Object.assign(picture, { group, head: [head, picture.title].filter(Boolean).join(" · ") });
  }
}

/** Describe the value of an input, by a key of its node's path and its name; `ifLong` describes long texts. */
function describe(key, value = "", ifLong = () => "") {
  const [path, input] = key.split(" ");
  const node = nodeAt(path), name = node?.inputs?.find((each) => each.name === input)?.localized_name ?? input;
  if (typeof value === "string") return value.length > 60 ? ifLong(name) : value.split("/").at(-1);
  return value < 0 && canFollowModel(node, input) ? translate("own", { name }) : `${name} ${value}`;
}

/** The text on a thumbnail; seeds are left out if every look has one. */
function caption({ seed, frame, name, temperature, image, score, lookName, isOnlyOfLook }) {
  if (frame) return name;
  const drawn = isOnlyOfLook ? undefined : seed > 99999 ? `…${String(seed).slice(-4)}` : seed;
  return [image, lookName, temperature, drawn, score].filter((part) => part !== undefined).join(" · ");
}

function addGallery(node) {
  const grid = make("div", { className: "flowcore-gallery" });
  const gallery = { grid, pictures: [], previews: [] };
  const result = (k) => gallery.pictures.find((picture) => picture === gallery.viewer.pictures[k]); // no preview
  const viewer = (gallery.viewer = new Viewer(
    (k) => togglePick(node, gallery, result(k)),
    (k) => grid.querySelectorAll("button")[k]?.scrollIntoView?.({ block: "nearest" }),
    (k) => result(k) && savePicture(node, result(k)),
  ));
  grid.addEventListener("pointerdown", (event) => event.stopPropagation()); // not a drag of the canvas
  grid.addEventListener("keydown", (event) => viewer.key(event));
  areaOf(node).prepend(viewer.element, grid);
  grid.insertAdjacentHTML("afterend", STYLE_SHEET);
  const pick = widgetOf(node, "pick");
  patchAfter(pick, "callback", () => markPicked(node));
  galleries.set(node, gallery);
  addLivePicture(node, gallery);
  // Another photograph ends the pick, unless the pick itself restored it.
  for (const { name, type } of node.inputs ?? []) {
    if (!/^IMAGE\b/.test(type)) continue;
    onUpstreamChoice(node, name, pictureWidget, (widget, hasChanged) => {
      const sent = Object.values(pickedOf(node, gallery)?.sent ?? {});
      const isRestored = () => sent.some(({ inputs }) => Object.values(inputs).includes(widget.value));
      if (hasChanged && pick.value && !isRestored()) setValue(node, pick, 0);
    });
  }
}

/** Show a live picture over that in the viewer while numbers are dragged, until they are those of its run again. */
function addLivePicture(node, gallery) {
  const { viewer } = gallery;
  const numbers = node.widgets.filter(({ name }) => inputSpec(node, name)[0] === "FLOAT");
  const entry = (widget) => [widget.name, widget.serializeValue?.() ?? widget.value];
  const readNumbers = () => Object.fromEntries(numbers.filter(({ name }) => !wired(node, name)).map(entry));
  let sent;
  const onRun = () => (sent = JSON.stringify(readNumbers()));
  const live = new Live(node, onRun, (_, url) => JSON.stringify(readNumbers()) !== sent && viewer.overlay(url));
  const ask = () => {
    const { run, number } = viewer.pictures[viewer.right] ?? {}, values = readNumbers();
    if (!sent || run !== gallery.last) return;
    if (JSON.stringify(values) === sent) return viewer.overlay("");
    live.ask("picture", values, { number: number - 1, at: viewer.middle() });
    translate("live").then((text) => viewer.showMessage(text));
  };
  for (const widget of numbers) patchAfter(widget, "callback", ask);
}

function pictureButton(node, gallery, picture) {
  const element = Object.assign(thumbnail(addressOf(picture), caption(picture)), { picture });
  if (picture.seed !== undefined) element.dataset.seed = picture.seed;
  element.addEventListener("click", () => {
    togglePick(node, gallery, picture);
    gallery.viewer.show(gallery.pictures, gallery.pictures.indexOf(picture));
  });
  element.addEventListener("dblclick", () => gallery.viewer.open(gallery.pictures.indexOf(picture)));
  return element;
}

function thumbnail(url, text) {
  const onerror = () => element.remove(); // the file is gone: the host empties the temp folder when it starts
  const image = make("img", { alt: "", draggable: false, onerror });
  const element = make("button", { type: "button" }, image);
  sharpen(image, url);
  if (text !== "") element.append(make("span", {}, text));
  return element;
}

// --- previews

/** Show a preview: the first of a run is the source, the others are finished pictures. */
function showPreview(node, blob, first) {
  const gallery = galleries.get(node);
  if (!gallery) return;
  const isSource = first && node.inputs.some(({ type }) => /^IMAGE\b/.test(type));
  if (first) clearPreviews(gallery);
  previewing.add(gallery);
  if (gallery.previews.length >= MAX_PICTURES) return;
  const url = URL.createObjectURL(blob);
  if (isSource) gallery.source = url;
  else {
    gallery.previews.push(url);
    const placeholder = thumbnail(url, "");
    placeholder.disabled = true; // until the run has finished
    gallery.grid.append(placeholder);
    placeholder.scrollIntoView?.({ block: "nearest" });
  }
  const samples = widgetOf(node, "samples")?.value ?? MAX_PICTURES; // the source is only that of the first image
  const shown = (gallery.previews.length ? gallery.previews : [url]).map((each, k) => ({
    name: gallery.previews.length ? String(k + 1) : "…",
    url: each,
    source: k < samples ? gallery.source : undefined,
    sourceName: "…",
  }));
  gallery.viewer.show(shown, shown.length - 1);
}

// --- picking

/** Pick a picture, or pass on all if it was picked already. Frames cannot be picked, so that their film stays whole. */
function togglePick(node, gallery, picture) {
  const pick = widgetOf(node, "pick");
  if (!picture || wired(node, "pick")) return;
  const again = picture === pickedOf(node, gallery);
  if (picture.frame && !again) return;
  gallery.picked = picture.run;
  const changes = restoreValues(picture.sent).filter(([key]) => !IGNORED_INPUTS.test(key));
  if (changes.length) sayRestored(gallery.viewer, changes);
  restoreValues(picture.sent); // again, because a brush drops its strokes when the picture below changes
  setValue(node, pick, again ? 0 : picture.number);
  markPicked(node);
  // Nodes that enlarge the same image get the temperature and seed of a cell, too.
  if (picture.temperature !== undefined && pick.value) {
    for (const other of node.graph.nodes) {
      const widgets = ["temperature", "seed"].map((key) => hasPick(other) && widgetOf(other, key));
      const same = (name) => sourceOf(node, name) && sourceOf(node, name) === sourceOf(other, name);
      if (!widgets.every(Boolean) || !["image", "model"].every(same)) continue;
      for (const widget of widgets) if (!wired(other, widget.name)) setValue(other, widget, picture[widget.name]);
      fixSeed(other);
    }
  }
}

/** Say in the viewer, which may be in full screen, which values were restored. */
async function sayRestored(viewer, changes) {
  const values = await Promise.all(changes.map(([key, value]) => describe(key, value, (name) => name)));
  viewer.showMessage(await translate("restored", { name: values.join(" · ") }));
}

/** Give the nodes of a run the values that it was sent with, and fix their seeds; return what has changed: [key, value]. */
function restoreValues(sent) {
  const changes = [];
  for (const [path, { class_type: kind, inputs }] of Object.entries(sent)) {
    const node = nodeAt(path);
    if (node?.comfyClass !== kind) continue;
    for (const widget of node.widgets ?? []) {
      const value = wired(node, widget.name) ? undefined : inputs[widget.name];
      // JavaScript cannot represent larger integers, so they must not be written back.
      if ([undefined, widget.value, widget.serializeValue?.()].includes(value)) continue;
      if (Number.isInteger(value) && !Number.isSafeInteger(value)) continue;
      changes.push([`${path} ${widget.name}`, value]);
      setValue(node, widget, value);
    }
    if (widgetOf(node, "seed") && !wired(node, "seed")) fixSeed(node);
  }
  return changes;
}

/** Keep the seed of a node from changing after a run. */
function fixSeed(node) {
  const seed = widgetOf(node, "seed");
  const control = seed.linkedWidgets?.[0] ?? widgetOf(node, "control_after_generate");
  if (!control || control.value === "fixed") return;
  setValue(node, control, "fixed");
  redraw(node, seed);
}

/** The output that an input is connected to, if any. */
function sourceOf(node, name) {
  const link = node.graph.getLink(node.inputs?.find((input) => input.name === name)?.link);
  return link && `${link.origin_id}.${link.origin_slot}`;
}

/** The picked picture, unless `pick` is connected. */
const pickedOf = (node, { pictures, picked }) =>
  wired(node, "pick") ? undefined : pictures.find(({ number, run }) => number === widgetOf(node, "pick").value && run === picked);

/** Show which picture is picked. */
function markPicked(node) {
  const gallery = galleries.get(node);
  const picked = pickedOf(node, gallery);
  gallery.viewer.mark(gallery.pictures.indexOf(picked));
  for (const button of gallery.grid.querySelectorAll("button")) {
    if (button.disabled) continue;
    const { picture } = button, on = picture === picked;
    button.setAttribute("aria-pressed", String(on));
    setLabel(button, wired(node, "pick") ? "wired" : on ? "picked" : picture.frame ? "frame" : "pick", picture);
  }
}

// --- saving

/**
 * Save a picture at full size: queue its run again, as it was sent, with that picture picked and the host's Save Image after it.
 * The host has the run in its cache and only writes the file, with the recipe in it.
 */
async function savePicture(node, picture) {
  const prompt = await savingPrompt(node, picture);
  if (!prompt) return showText(node, await translate("gone"));
  const answer = post("/prompt", prompt).then((response) => response.json()).catch(() => ({}));
  const finished = new AbortController();
  const listen = async ({ type, detail }) => {
    if (detail.prompt_id !== (await answer).prompt_id || (type === "executed" && detail.node !== SAVING)) return;
    finished.abort();
    if (type !== "executed") return; // the page shows the error
    const [{ subfolder, filename }] = detail.output.images;
    showText(node, await translate("saved", { name: `output/${subfolder}/${filename}` }));
  };
  for (const event of ["executed", "execution_error", "execution_interrupted"])
    api.addEventListener(event, listen, { signal: finished.signal }); // before the answer, which the run may overtake
  if ((await answer).prompt_id) return;
  finished.abort();
  showText(node, await translate("gone"));
}

/** The prompt of a picture's run from the server's history, changed to pick and save that picture; undefined if it is gone. */
async function savingPrompt(node, { filename, number, run }) {
  const history = await api.fetchApi(`/history/${run}`).then((response) => response.json());
  const hasPicture = ([, output]) => output[GALLERY]?.some((each) => each.filename === filename);
  const [path] = Object.entries(history[run]?.outputs ?? {}).find(hasPicture) ?? [];
  if (!path) return undefined;
  const [, , nodes, extra] = history[run].prompt;
  nodes[path].inputs.pick = number;
  const values = extra.extra_pnginfo?.workflow?.nodes?.find(({ id }) => String(id) === path)?.widgets_values;
  if (values) values[node.widgets.indexOf(widgetOf(node, "pick"))] = number;
  nodes[SAVING] = { class_type: "SaveImage", inputs: { images: [path, 0], filename_prefix: "flowcore/saved" } };
  return { prompt: nodes, extra_data: extra, client_id: api.clientId, front: true, partial_execution_targets: [SAVING] };
}

// --- styles

const STYLE_SHEET = `<style>
.flowcore-area > .flowcore-viewer { flex: 1 1 0; }
.flowcore-gallery {
  flex: none; max-height: 108px; overflow-y: auto; display: grid; gap: 4px; grid: auto-flow / repeat(auto-fit, minmax(60px, 1fr)); }
.flowcore-gallery p {
  grid-column: 1 / -1; margin: 0; padding-top: 3px; border-top: 1px solid var(--border-color, #444); font: 11px/1.2 sans-serif; color: var(--descrip-text, #999); }
.flowcore-gallery:empty, .flowcore-gallery.outdated > :not(:disabled) { display: none; }
.flowcore-gallery button {
  position: relative; height: 52px; padding: 0; border: 2px solid transparent; border-radius: 6px; overflow: hidden; cursor: pointer;
  background: var(--comfy-input-bg, #222); line-height: 0; min-width: 0; outline-offset: -2px; }
.flowcore-gallery button:hover:enabled { border-color: var(--descrip-text, #999); }
.flowcore-gallery button[aria-pressed="true"] { border-color: var(--p-primary-color, #4a90e2); }
.flowcore-gallery:has([aria-pressed="true"]) button[aria-pressed="false"] img { opacity: 0.45; }
.flowcore-gallery button:disabled { cursor: default; opacity: 0.5; } /* not a result yet, or of a run that was stopped */
.flowcore-gallery img { width: 100%; height: 100%; object-fit: contain; }
.flowcore-gallery span {
  position: absolute; left: 0; bottom: 0; max-width: 100%; box-sizing: border-box; padding: 2px 5px; overflow: hidden;
  border-top-right-radius: 5px; font: 10px/1.2 sans-serif; color: #fff; background: rgba(0, 0, 0, 0.55); text-overflow: ellipsis;
  white-space: nowrap; }
/* Previews are shown in the viewer; Nodes 2.0 would show them below it, too. */
[data-node-id]:has(.flowcore-viewer) img.pointer-events-none.contain-size,
[data-node-id]:has(.flowcore-viewer) img.pointer-events-none.contain-size + div { display: none; }
</style>`;
