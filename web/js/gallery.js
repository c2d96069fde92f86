// The pictures of the last run on the node that made them: two of them over each other, and all of them below. A click
// picks one, which then goes on alone: the widget `pick` holds all there is, so that scripts and saved workflows need
// none of this. The seed is held with it, so that the host finds the run again and computes nothing.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addElement, after, isOurs, label, redraw, say, set, widgetOf, wired } from "./canvas.js";
import { addressOf } from "./picture.js";
import { current, isHere, nodeAt, onResult } from "./runs.js";
import { Viewer } from "./viewer.js";

const GALLERY = "flowcore_gallery"; // the key in a node's output, and the name of the widget
const GAP = 4;
const SMALL = 96; // pixels
const STAGE = [150, 420]; // pixels of height that the viewer asks for
const MOST = 280; // pixels of height that the thumbnails ask for; the rest scrolls
const NARROW = 72; // pixels of a thumbnail
const SHOWN = 64; // pictures of a run; the host sends no more

const LOOK = document.createElement("style"); // GAP is in it
LOOK.textContent = `
.flowcore-frame { display: flex; flex-direction: column; gap: 4px; }
.flowcore-frame > .flowcore-viewer { flex: 1 1 auto; }
.flowcore-frame > .flowcore-gallery { flex: 0 0 auto; }
.flowcore-gallery { display: grid; gap: 4px; overflow-y: auto; align-content: start; box-sizing: border-box; }
.flowcore-gallery button {
  position: relative; padding: 0; border: 2px solid transparent; border-radius: 6px; overflow: hidden; cursor: pointer;
  background: var(--comfy-input-bg, #222); line-height: 0; min-width: 0;
}
.flowcore-gallery button:hover:enabled { border-color: var(--descrip-text, #999); }
.flowcore-gallery button:focus-visible { outline: 2px solid var(--p-primary-color, #4a90e2); outline-offset: -2px; }
.flowcore-gallery button[aria-pressed="true"] { border-color: var(--p-primary-color, #4a90e2); }
.flowcore-gallery:has([aria-pressed="true"]) button[aria-pressed="false"] img { opacity: 0.45; }
.flowcore-gallery button:disabled { cursor: default; }
.flowcore-gallery img { width: 100%; height: 100%; object-fit: contain; }
.flowcore-gallery img.small { image-rendering: pixelated; }
.flowcore-gallery span {
  position: absolute; left: 0; bottom: 0; max-width: 100%; box-sizing: border-box; padding: 2px 5px; overflow: hidden;
  border-top-right-radius: 5px; font: 10px/1.2 sans-serif; color: #fff; background: rgba(0, 0, 0, 0.55);
  text-overflow: ellipsis; white-space: nowrap;
}
/* Previews are shown in the viewer; Nodes 2.0 would show them below it, too. */
[data-node-id]:has(.flowcore-frame) img.pointer-events-none.contain-size,
[data-node-id]:has(.flowcore-frame) img.pointer-events-none.contain-size + div { display: none; }
`;

app.registerExtension({
  name: "flowcore.gallery",
  nodeCreated(node) {
    if (!picks(node)) return;
    after(node, "onConfigure", () => {
      // Where `pick` stands, older workflows may hold what a view of the frontend's has shown.
      const pick = widgetOf(node, "pick");
      if (!Number.isInteger(pick.value)) pick.value = 0;
      mark(node);
    });
    // The classic canvas draws previews here, below the viewer.
    node.onDrawBackground = () => {};
  },
  setup() {
    api.addEventListener("b_preview_with_metadata", async ({ detail: { displayNodeId: place, blob } }) => {
      const first = !begun.has(place);
      begun.add(place);
      if (blob && (await isHere(current())) !== false) preview(nodeAt(place), blob, first);
    });
    api.addEventListener("execution_start", () => {
      begun.clear();
      for (const gallery of working) gallery.made = undefined;
      working.clear();
    });
  },
});

onResult((node, output) => show(node, output[GALLERY]));

const galleries = new WeakMap(); // from nodes
const working = new Set(); // galleries with previews of a run
const begun = new Set(); // places of the nodes of which this run has sent a preview

const picks = (node) => isOurs(node) && widgetOf(node, "pick");

// ---------------------------------------------------------------------------------------------------------------------
// what is shown

async function show(node, pictures) {
  if (!picks(node) || !pictures?.length) return;
  const gallery = galleries.get(node) ?? hang(node);
  const first = gallery.made !== undefined; // after previews, not after another pick
  gallery.made = undefined;
  working.delete(gallery);
  gallery.pictures = pictures;
  const names = await Promise.all(pictures.map(name));
  const sourceName = await say("source");
  if (gallery.pictures !== pictures) return; // a newer run
  const { grid, viewer } = gallery;
  grid.replaceChildren(...(pictures.length > 1 ? pictures.map((_, place) => button(node, gallery, place, names)) : []));
  arrange(gallery, pictures[0].rows);
  const place = pictures.findIndex((picture) => picture.number === widgetOf(node, "pick").value);
  viewer.show(
    pictures.map((picture, k) => ({
      name: names[k],
      url: addressOf(picture.full ?? picture),
      source: picture.source && addressOf(picture.source),
      sourceName,
    })),
    place >= 0 ? place : first ? 0 : viewer.right,
  );
  mark(node);
}

/** What a picture is called in a sentence. */
async function name({ seed, temperature, image, score }) {
  const parts = [
    image !== undefined && say("image", { image }),
    seed !== undefined && say(temperature !== undefined ? "cell" : "seed", { seed, temperature }),
    score,
  ];
  return (await Promise.all(parts.filter(Boolean))).join(" · ");
}

/** What stands on its thumbnail. */
function caption({ seed, temperature, image, score }) {
  return [image, temperature, seed, score].filter((part) => part !== undefined).join(" · ");
}

function hang(node) {
  const frame = document.createElement("div");
  const grid = document.createElement("div");
  frame.className = "flowcore-frame";
  grid.className = "flowcore-gallery";
  frame.dataset.captureWheel = "true"; // what has the focus gets the wheel, which Nodes 2.0 otherwise gives to the canvas
  const gallery = { frame, grid, pictures: [], shape: 0.75, columns: 1, rows: 0 };
  gallery.viewer = new Viewer(
    (place) => choose(node, gallery, place),
    (place) => grid.children[place]?.scrollIntoView?.({ block: "nearest" }),
  );
  frame.append(gallery.viewer.element, grid);
  grid.addEventListener("pointerdown", (event) => event.stopPropagation()); // not a drag of the canvas
  grid.addEventListener("keydown", (event) => gallery.viewer.key(event));
  addElement(node, GALLERY, frame, () => height(node, gallery), LOOK);
  after(widgetOf(node, "pick"), "callback", () => mark(node));
  const image = gallery.viewer.layers[1].firstElementChild;
  image.addEventListener("load", () => settle(node, gallery, image));
  galleries.set(node, gallery);
  return gallery;
}

/** The height that the viewer and all rows need at the node's width, as far as it is given to them. */
function height(node, gallery) {
  const { shape, columns, rows } = gallery;
  const width = node.size[0] - 20;
  const stage = Math.min(STAGE[1], Math.max(STAGE[0], width * shape));
  const each = (width - GAP * (columns - 1)) / columns;
  return Math.round(stage + Math.min(MOST, rows * (each * shape + GAP)));
}

function arrange(gallery, down) {
  const { grid } = gallery;
  const count = grid.childElementCount;
  const wide = Math.max(2, Math.floor((grid.clientWidth || 320) / NARROW));
  gallery.columns = Math.max(1, down ? Math.ceil(count / down) : Math.min(count, wide));
  gallery.rows = Math.ceil(count / gallery.columns);
  grid.style.gridTemplateColumns = `repeat(${gallery.columns}, minmax(0, 1fr))`;
  grid.style.maxHeight = `${MOST}px`;
  // A table of temperatures and seeds: every column is a temperature.
  grid.style.gridTemplateRows = down ? `repeat(${down}, auto)` : "";
  grid.style.gridAutoFlow = down ? "column" : "";
}

/** All pictures of a run have one shape: the node makes room for it. */
function settle(node, gallery, image) {
  if (gallery.viewer.dialog) return;
  gallery.shape = image.naturalHeight / image.naturalWidth;
  gallery.frame.style.minHeight = `${height(node, gallery)}px`;
  const [wide, now] = node.size;
  const needed = node.computeSize()[1];
  if (now < needed) node.setSize([wide, needed]);
  node.setDirtyCanvas?.(true, true);
}

function button(node, gallery, place, names) {
  const picture = gallery.pictures[place];
  const made = thumbnail(addressOf(picture), caption(picture));
  made.name = names[place];
  made.dataset.number = picture.number;
  if (picture.seed !== undefined) made.dataset.seed = picture.seed;
  made.addEventListener("click", () => {
    choose(node, gallery, place);
    gallery.viewer.show(gallery.viewer.pictures, place);
  });
  made.addEventListener("dblclick", () => gallery.viewer.open(place));
  return made;
}

function thumbnail(url, text) {
  const made = document.createElement("button");
  made.type = "button";
  const image = Object.assign(document.createElement("img"), { alt: "", draggable: false });
  image.addEventListener("error", () => made.remove()); // gone since: the temp folder is emptied at every start
  image.addEventListener("load", () => {
    image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL);
    made.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
  });
  image.src = url;
  made.append(image);
  if (text !== "") made.append(Object.assign(document.createElement("span"), { textContent: text }));
  return made;
}

// ---------------------------------------------------------------------------------------------------------------------
// while it runs

/** Show a preview: the first of a run is what is worked on, then comes every picture as it is ready. */
function preview(node, blob, first) {
  if (!picks(node)) return;
  const gallery = galleries.get(node) ?? hang(node);
  const begins = first && node.inputs.some((input) => input.type === "IMAGE");
  gallery.made ??= [];
  working.add(gallery);
  if (!begins && gallery.made.length >= SHOWN) return; // as many as are there afterwards
  const url = URL.createObjectURL(blob);
  if (begins) {
    gallery.source = url;
    gallery.pictures = [];
    gallery.grid.replaceChildren();
  } else {
    gallery.made.push(url);
    const made = thumbnail(url, "");
    made.disabled = true; // until all are there
    gallery.grid.append(made);
  }
  arrange(gallery);
  const shown = gallery.made.length ? gallery.made : [url];
  const samples = widgetOf(node, "samples")?.value ?? SHOWN; // the source is that of the first image
  gallery.viewer.show(
    shown.map((each, k) => ({
      name: gallery.made.length ? String(k + 1) : "…",
      url: each,
      source: k < samples ? gallery.source : undefined,
      sourceName: "…",
    })),
    shown.length - 1,
  );
}

// ---------------------------------------------------------------------------------------------------------------------
// picking

/** Let one picture go on alone, or all of them if it was the one that did. */
function choose(node, gallery, place) {
  const picture = gallery.pictures[place];
  const pick = widgetOf(node, "pick");
  if (!picture || wired(node, "pick")) return;
  set(node, pick, pick.value === picture.number ? 0 : picture.number);
  hold(node);
  // The temperature and seed of a cell also go to where the same image is enlarged.
  if (picture.temperature !== undefined && pick.value) {
    for (const other of node.graph.nodes) {
      if (other.comfyClass !== "FlowcoreUpscale" || !same(node, other, "image")) continue;
      for (const key of ["temperature", "seed"]) {
        if (!wired(other, key)) set(other, widgetOf(other, key), picture[key]);
      }
      fix(other);
    }
  }
}

/** Keep the seeds of the last run, here and in the nodes of ours before: the picture would be another one. */
function hold(node, seen = new Set()) {
  if (!node || seen.has(node)) return;
  seen.add(node);
  const first = galleries.get(node)?.pictures.find((picture) => picture.number === 1)?.seed;
  const seed = widgetOf(node, "seed");
  // Larger numbers are not whole in JavaScript: they can be seen, and not written back.
  if (seed && Number.isSafeInteger(first) && !wired(node, "seed")) {
    set(node, seed, first);
    fix(node);
  }
  for (let place = 0; place < (node.inputs?.length ?? 0); place++) hold(node.getInputNode(place), seen);
}

/** Let the seed of a node stay after a run. */
function fix(node) {
  const seed = widgetOf(node, "seed");
  const control = seed.linkedWidgets?.[0] ?? widgetOf(node, "control_after_generate");
  if (!control || control.value === "fixed") return;
  set(node, control, "fixed");
  redraw(node, seed);
}

/** Whether an input of two nodes comes from one output. */
function same(one, other, key) {
  const [a, b] = [one, other].map((node) => {
    const place = node.inputs?.findIndex((input) => input.name === key);
    const link = place >= 0 ? node.getInputLink(place) : null;
    return link && `${link.origin_id}.${link.origin_slot}`;
  });
  return Boolean(a) && a === b;
}

/** Show which picture goes on. */
function mark(node) {
  const gallery = galleries.get(node);
  if (!gallery) return;
  const { value } = widgetOf(node, "pick");
  const blocked = wired(node, "pick");
  gallery.viewer.mark(blocked ? -1 : gallery.pictures.findIndex((picture) => picture.number === value));
  for (const made of gallery.grid.children) {
    const on = !blocked && made.dataset.number === String(value);
    made.setAttribute("aria-pressed", String(on));
    label(made, blocked ? "wired" : on ? "picked" : "pick", { name: made.name });
  }
}
