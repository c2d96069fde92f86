// The pictures of the last runs on the node that made them: two of them over each other, and all of them below. A click
// picks one, which then goes on alone: the widget `pick` holds all there is, so that scripts and saved workflows need
// none of this. All that its run was sent with comes back, so that the host finds that run again and computes nothing.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { after, areaOf, label, make, OWN, picks, post, redraw, say, set, sharpen, widgetOf, wired } from "./canvas.js";
import { addressOf, choiceOf, onChoice } from "./picture.js";
import { Live } from "./live.js";
import { isHere, nodeAt, onResult } from "./runs.js";
import { show as tell } from "./text.js";
import { Viewer } from "./viewer.js";

const GALLERY = "flowcore_gallery"; // the key in a node's output
const SHOWN = 64; // pictures on a node; the host sends no more of a run
const SEEDS = / (seed|pick|samples|seeds)$/; // what runs may be sent with otherwise, and are alike
const SAVING = "flowcore_save"; // the node that saves a picture, on no canvas

const LOOK = `<style>
.flowcore-area > .flowcore-viewer { flex: 1 1 0; }
.flowcore-gallery {
  flex: none; max-height: 108px; overflow-y: auto; display: grid; gap: 4px; grid: auto-flow / repeat(auto-fit, minmax(60px, 1fr)); }
.flowcore-gallery p {
  grid-column: 1 / -1; margin: 0; padding-top: 3px; border-top: 1px solid var(--border-color, #444); font: 11px/1.2 sans-serif; color: var(--descrip-text, #999); }
.flowcore-gallery:empty { display: none; }
.flowcore-gallery button {
  position: relative; height: 52px; padding: 0; border: 2px solid transparent; border-radius: 6px; overflow: hidden; cursor: pointer;
  background: var(--comfy-input-bg, #222); line-height: 0; min-width: 0; outline-offset: -2px; }
.flowcore-gallery button:hover:enabled { border-color: var(--descrip-text, #999); }
.flowcore-gallery button[aria-pressed="true"] { border-color: var(--p-primary-color, #4a90e2); }
.flowcore-gallery:has([aria-pressed="true"]) button[aria-pressed="false"] img { opacity: 0.45; }
.flowcore-gallery button:disabled { cursor: default; }
.flowcore-gallery img { width: 100%; height: 100%; object-fit: contain; }
.flowcore-gallery span {
  position: absolute; left: 0; bottom: 0; max-width: 100%; box-sizing: border-box; padding: 2px 5px; overflow: hidden;
  border-top-right-radius: 5px; font: 10px/1.2 sans-serif; color: #fff; background: rgba(0, 0, 0, 0.55); text-overflow: ellipsis;
  white-space: nowrap; }
/* Previews are shown in the viewer; Nodes 2.0 would show them below it, too. */
[data-node-id]:has(.flowcore-viewer) img.pointer-events-none.contain-size,
[data-node-id]:has(.flowcore-viewer) img.pointer-events-none.contain-size + div { display: none; }
</style>`;

app.registerExtension({
  name: "flowcore.gallery",
  nodeCreated(node) {
    if (!picks(node)) return;
    attach(node);
    after(node, "onConfigure", () => mark(node));
    // The classic canvas draws previews here, below the viewer.
    node.onDrawBackground = () => {};
  },
  setup() {
    api.addEventListener("b_preview_with_metadata", ({ detail: { displayNodeId: place, blob } }) => {
      const first = !begun.has(place);
      begun.add(place);
      if (blob && isHere()) preview(nodeAt(place), blob, first);
    });
    api.addEventListener("execution_start", () => {
      begun.clear();
      for (const gallery of working) {
        forget(gallery); // what a run began that did not end
        gallery.viewer.show(gallery.pictures);
      }
      working.clear();
    });
  },
});

onResult((node, output, run, every) => show(node, every ?? [[output, run]], Boolean(every)));

const galleries = new WeakMap(); // from nodes
const working = new Set(); // galleries with previews of a run
const begun = new Set(); // places of the nodes of which this run has sent a preview

// --- what is shown

/** Show the pictures of a run behind those of runs before it; or those of all runs that the server remembers, oldest first. */
async function show(node, results, recalled) {
  const gallery = galleries.get(node);
  if (!gallery || !results.some(([output]) => output[GALLERY]?.length)) return;
  const sourceName = await say("source");
  let pictures = results.flatMap(([output, run]) => (output[GALLERY] ?? []).map((picture) => ({
    ...picture, run, sent: output.flowcore_sent?.[0] ?? {}, sourceName, url: addressOf(picture.full ?? picture),
    source: picture.source && addressOf(picture.source),
  })));
  if (recalled) pictures = await there(latest(pictures));
  const [, run] = results.at(-1);
  const picked = (recalled && widgetOf(node, "pick").value && (await sentNow(pictures))) || run;
  const shown = pictures.filter((picture) => picture.run === run);
  const first = working.delete(gallery); // after previews, not after another pick
  const rows = shown[0]?.rows; // a table of temperatures and seeds stands alone: every column is a temperature
  const every = [...(recalled ? pictures : []), ...gallery.pictures, ...pictures];
  gallery.pictures = latest(rows ? shown : every.filter((picture) => !picture.rows));
  if (!gallery.pictures.length) return;
  Object.assign(gallery, { picked, last: run }); // the run that a pick is from, and that of live pictures
  await entitle(gallery.pictures);
  forget(gallery);
  gallery.grid.style.grid = rows ? `repeat(${rows}, 52px) / auto-flow minmax(0, 1fr)` : "";
  const several = gallery.pictures.length > 1 ? gallery.pictures : [];
  const headOf = ({ head }, k) => (head !== several[k - 1]?.head && head ? [make("p", {}, head)] : []);
  gallery.grid.replaceChildren(...several.flatMap((picture, k) => [...headOf(picture, k), button(node, gallery, picture)]));
  const { viewer } = gallery;
  const seen = pickedOf(node, gallery) ?? (!first && shown.includes(gallery.pictures[viewer.right]) ? undefined : shown[0]);
  viewer.show(gallery.pictures, seen ? gallery.pictures.indexOf(seen) : viewer.right);
  viewer.onShow(viewer.right);
  mark(node);
}

/** The last of some pictures; one that was made once is there once, with what was known of it last. */
const latest = (pictures) => [...new Map(pictures.map((picture) => [picture.filename, picture])).values()].slice(-SHOWN);

/** Those of some pictures whose files are still there: they are in the temp folder, which may be emptied. */
async function there(pictures) {
  const answers = await Promise.all(pictures.map((picture) => fetch(addressOf(picture), { method: "HEAD" }).catch(() => ({}))));
  return pictures.filter((_, place) => answers[place].ok);
}

/** The latest run among those of some pictures that was sent with what stands on the nodes now. */
async function sentNow(pictures) {
  const { output: prompt } = await app.graphToPrompt();
  const same = (place, [name, value]) => String(prompt[place]?.inputs[name]) === String(value);
  const all = ([place, { inputs }]) => Object.entries(inputs).every((input) => same(place, input));
  return pictures.findLast(({ sent }) => Object.entries(sent).every(all))?.run;
}

/** Let go of the previews. */
function forget(gallery) {
  for (const url of [gallery.source, ...gallery.made.splice(0)]) URL.revokeObjectURL(url);
  gallery.source = undefined;
  for (const made of gallery.grid.querySelectorAll(":disabled")) made.remove();
}

/**
 * Name pictures: in a sentence, with what their runs were sent with, as far as that differs in more than seeds. And group
 * them for the arrows, each group under a head: those of a run; runs of one picture each are one, if they differ in seeds only.
 */
async function entitle(pictures) {
  const flat = ([place, { inputs }]) => Object.entries(inputs).map(([name, value]) => [`${place} ${name}`, value]);
  const runs = new Map(pictures.map(({ run, sent }) => [run, new Map(Object.entries(sent).flatMap(flat))]));
  const [first, ...others] = runs.values();
  const keys = [...first.keys()].filter((key) => !SEEDS.test(key) && others.some((run) => run.get(key) !== first.get(key)));
  for (const picture of pictures) {
    const { seed, frame, temperature, image, score, run } = picture;
    const kind = temperature !== undefined ? "cell" : frame ? "frame" : seed !== undefined && "seed";
    const parts = [image !== undefined && say("image", { image }), kind && say(kind, picture), score, ...keys.map((key) => told(key, runs.get(run).get(key)))];
    const said = await Promise.all(parts);
    picture.name = said.filter(Boolean).join(" · ");
    picture.title = said.slice(3).filter(Boolean).join(" · ");
  }
  const groupOf = ({ run, title }) => (pictures.filter((other) => other.run === run).length > 1 ? run : title);
  const groups = [...Map.groupBy(pictures, groupOf)];
  for (const [k, [group, every]] of groups.entries()) {
    const head = groups.length > 1 && (await say("run", { run: k + 1, runs: groups.length }));
    for (const picture of every) Object.assign(picture, { group, head: [head, picture.title].filter(Boolean).join(" · ") });
  }
}

function told(key, value = "", long = () => "") {
  const [place, named] = key.split(" ");
  const node = nodeAt(place), name = node?.inputs?.find((input) => input.name === named)?.localized_name ?? named;
  if (typeof value === "string") return value.length > 60 ? long(name) : value.split("/").at(-1);
  return value < 0 && widgetOf(node, named)?.options.min === OWN ? say("own", { name }) : `${name} ${value}`;
}

/** What stands on its thumbnail. */
function caption({ seed, frame, name, temperature, image, score }) {
  if (frame) return name;
  return [image, temperature, seed > 99999 ? `…${String(seed).slice(-4)}` : seed, score].filter((part) => part !== undefined).join(" · ");
}

function attach(node) {
  const grid = make("div", { className: "flowcore-gallery" });
  const gallery = { grid, pictures: [], made: [] };
  const viewer = (gallery.viewer = new Viewer(
    (place) => choose(node, gallery, gallery.pictures[place]),
    (place) => grid.querySelectorAll("button")[place]?.scrollIntoView?.({ block: "nearest" }),
    (place) => save(node, gallery.pictures[place]),
  ));
  grid.addEventListener("pointerdown", (event) => event.stopPropagation()); // not a drag of the canvas
  grid.addEventListener("keydown", (event) => viewer.key(event));
  areaOf(node).prepend(viewer.element, grid);
  grid.insertAdjacentHTML("afterend", LOOK);
  const pick = widgetOf(node, "pick");
  after(pick, "callback", () => mark(node));
  galleries.set(node, gallery);
  follow(node, gallery);
  // Of another photograph nothing is picked yet, unless a pick has brought it back.
  for (const { name, type } of node.inputs ?? []) if (/^IMAGE\b/.test(type)) onChoice(node, name, choiceOf, (choice, another) => {
    const sent = Object.values(pickedOf(node, gallery)?.sent ?? {});
    if (another && pick.value && !sent.some(({ inputs }) => Object.values(inputs).includes(choice.value))) set(node, pick, 0);
  });
}

/** Let the picture in the viewer follow the numbers of its node while they are dragged, until they are those of its run again. */
function follow(node, gallery) {
  const { viewer } = gallery;
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  const numbers = node.widgets.filter(({ name }) => (required?.[name] ?? optional?.[name])?.[0] === "FLOAT");
  const read = () => Object.fromEntries(numbers.filter(({ name }) => !wired(node, name)).map((w) => [w.name, w.serializeValue?.() ?? w.value]));
  let sent;
  const live = new Live(node, () => (sent = JSON.stringify(read())), (_, url) => JSON.stringify(read()) !== sent && viewer.lay(url));
  const ask = () => {
    const { run, number } = viewer.pictures[viewer.right] ?? {}, values = read();
    if (!sent || run !== gallery.last) return;
    if (JSON.stringify(values) === sent) return viewer.lay("");
    live.ask("picture", values, { number: number - 1, at: viewer.middle() });
    say("live").then((text) => viewer.say(text));
  };
  for (const widget of numbers) after(widget, "callback", ask);
}

function button(node, gallery, picture) {
  const made = Object.assign(thumbnail(addressOf(picture), caption(picture)), { picture });
  if (picture.seed !== undefined) made.dataset.seed = picture.seed;
  made.addEventListener("click", () => {
    choose(node, gallery, picture);
    gallery.viewer.show(gallery.pictures, gallery.pictures.indexOf(picture));
  });
  made.addEventListener("dblclick", () => gallery.viewer.open(gallery.pictures.indexOf(picture)));
  return made;
}

function thumbnail(url, text) {
  const onerror = () => made.remove(); // gone since: the temp folder is emptied at every start
  const image = make("img", { alt: "", draggable: false, onerror });
  const made = make("button", { type: "button" }, image);
  sharpen(image, url);
  if (text !== "") made.append(make("span", {}, text));
  return made;
}

// --- while it runs

/** Show a preview: the first of a run is what is worked on, then comes every picture as it is ready. */
function preview(node, blob, first) {
  const gallery = galleries.get(node);
  if (!gallery) return;
  const begins = first && node.inputs.some(({ type }) => /^IMAGE\b/.test(type));
  if (first) forget(gallery);
  working.add(gallery);
  if (gallery.made.length >= SHOWN) return; // as many as are there afterwards
  const url = URL.createObjectURL(blob);
  if (begins) gallery.source = url;
  else {
    gallery.made.push(url);
    const made = thumbnail(url, "");
    made.disabled = true; // until all are there
    gallery.grid.append(made);
    made.scrollIntoView?.({ block: "nearest" });
  }
  const samples = widgetOf(node, "samples")?.value ?? SHOWN; // the source is that of the first image
  const shown = (gallery.made.length ? gallery.made : [url]).map((each, k) => ({
    name: gallery.made.length ? String(k + 1) : "…",
    url: each,
    source: k < samples ? gallery.source : undefined,
    sourceName: "…",
  }));
  gallery.viewer.show(shown, shown.length - 1);
}

// --- picking

/** Let one picture go on alone, or all of its run if it was the one that did. A frame is looked at: its film stays whole. */
function choose(node, gallery, picture) {
  const pick = widgetOf(node, "pick");
  if (!picture || wired(node, "pick")) return;
  const again = picture === pickedOf(node, gallery);
  if (picture.frame && !again) return;
  gallery.picked = picture.run;
  const changes = restore(picture.sent).filter(([key]) => !SEEDS.test(key)).map(([key, value]) => told(key, value, (name) => name));
  if (changes.length) // seen in full screen, too
    Promise.all(changes).then((names) => say("restored", { name: names.join(" · ") })).then((text) => gallery.viewer.say(text));
  restore(picture.sent); // once more what was painted, which a brush forgets over another picture
  set(node, pick, again ? 0 : picture.number);
  mark(node);
  // The temperature and seed of a cell also go to where the same image is enlarged.
  if (picture.temperature !== undefined && pick.value) {
    for (const other of node.graph.nodes) {
      const widgets = ["temperature", "seed"].map((key) => picks(other) && widgetOf(other, key));
      const same = (name) => sourceOf(node, name) && sourceOf(node, name) === sourceOf(other, name);
      if (!widgets.every(Boolean) || !["image", "model"].every(same)) continue;
      for (const widget of widgets) if (!wired(other, widget.name)) set(other, widget, picture[widget.name]);
      fix(other);
    }
  }
}

/**
 * Give the nodes of a run the values that it was sent with, and let their seeds stay: the picture would be another one.
 * What was changed comes back.
 */
function restore(sent) {
  const changes = [];
  for (const [place, { class_type: kind, inputs }] of Object.entries(sent)) {
    const node = nodeAt(place);
    if (node?.comfyClass !== kind) continue;
    for (const widget of node.widgets ?? []) {
      const value = wired(node, widget.name) ? undefined : inputs[widget.name];
      // Larger numbers are not whole in JavaScript: they can be seen, and not written back.
      if ([undefined, widget.value, widget.serializeValue?.()].includes(value)) continue;
      if (Number.isInteger(value) && !Number.isSafeInteger(value)) continue;
      changes.push([`${place} ${widget.name}`, value]);
      set(node, widget, value);
    }
    if (widgetOf(node, "seed") && !wired(node, "seed")) fix(node);
  }
  return changes;
}

/** Let the seed of a node stay after a run. */
function fix(node) {
  const seed = widgetOf(node, "seed");
  const control = seed.linkedWidgets?.[0] ?? widgetOf(node, "control_after_generate");
  if (!control || control.value === "fixed") return;
  set(node, control, "fixed");
  redraw(node, seed);
}

/** The output that an input comes from; undefined if from none. */
function sourceOf(node, name) {
  const link = node.graph.getLink(node.inputs?.find((input) => input.name === name)?.link);
  return link && `${link.origin_id}.${link.origin_slot}`;
}

/** The picture that goes on alone, if it is one of ours to say. */
const pickedOf = (node, { pictures, picked }) => wired(node, "pick") ? undefined
  : pictures.find(({ number, run }) => number === widgetOf(node, "pick").value && run === picked);

/** Show which picture goes on. */
function mark(node) {
  const gallery = galleries.get(node);
  const picked = pickedOf(node, gallery);
  gallery.viewer.mark(gallery.pictures.indexOf(picked));
  for (const made of gallery.grid.querySelectorAll("button")) {
    if (made.disabled) continue;
    const on = made.picture === picked;
    made.setAttribute("aria-pressed", String(on));
    label(made, wired(node, "pick") ? "wired" : on ? "picked" : made.picture.frame ? "frame" : "pick", made.picture);
  }
}

// --- saving

/**
 * Save a picture in full: its run once more, as it was sent then, with that picture picked and the host's Save Image behind
 * it. The host has kept what the run made and only writes the file, with the recipe in it.
 */
async function save(node, { filename, number, run }) {
  const { [run]: kept } = await (await api.fetchApi(`/history/${run}`)).json();
  const isIts = ([, output]) => output[GALLERY]?.some((each) => each.filename === filename);
  const [place] = Object.entries(kept?.outputs ?? {}).find(isIts) ?? [];
  if (!place) return tell(node, await say("gone"));
  const [, , nodes, extra] = kept.prompt;
  nodes[place].inputs.pick = number;
  const values = extra.extra_pnginfo?.workflow?.nodes?.find(({ id }) => String(id) === place)?.widgets_values;
  if (values) values[node.widgets.indexOf(widgetOf(node, "pick"))] = number;
  nodes[SAVING] = { class_type: "SaveImage", inputs: { images: [place, 0], filename_prefix: "flowcore/saved" } };
  const body = { prompt: nodes, extra_data: extra, client_id: api.clientId, front: true, partial_execution_targets: [SAVING] };
  const asked = post("/prompt", body).then((answer) => answer.json()).catch(() => ({}));
  const over = new AbortController();
  const heard = async ({ type, detail }) => {
    if (detail.prompt_id !== (await asked).prompt_id || (type === "executed" && detail.node !== SAVING)) return;
    over.abort();
    if (type !== "executed") return; // the page says why
    const [{ subfolder, filename: file }] = detail.output.images;
    tell(node, await say("saved", { name: `output/${subfolder}/${file}` }));
  };
  for (const event of ["executed", "execution_error", "execution_interrupted"])
    api.addEventListener(event, heard, { signal: over.signal });
  if ((await asked).prompt_id) return;
  over.abort();
  tell(node, await say("gone"));
}
