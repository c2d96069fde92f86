// The pictures of the last run on the node that made them. A click takes the seed of one and keeps it: the widgets
// `seed` and `control_after_generate` hold all there is, so that scripts and saved workflows need none of this.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addElement, redraw, say, set, wired } from "./canvas.js";

const GALLERY = "flowcore_gallery"; // the key in a node's output, and the name of the widget
const PREVIEW = "$$canvas-image-preview"; // the classic canvas's name for what is seen while a node works
const GAP = 4;
const SMALL = 96; // pixels
const MOST = 400; // pixels of height that the gallery asks for; the rest scrolls

const LOOK = document.createElement("style"); // GAP is in it
LOOK.textContent = `
.flowcore-gallery-frame { display: flex; flex-direction: column; }
.flowcore-gallery-frame > .flowcore-gallery { flex: 1 1 auto; min-height: 0; }
.flowcore-gallery { display: grid; gap: 4px; overflow-y: auto; align-content: start; box-sizing: border-box; }
.flowcore-gallery button {
  position: relative; padding: 0; border: 2px solid transparent; border-radius: 6px; overflow: hidden; cursor: pointer;
  background: var(--comfy-input-bg, #222); line-height: 0; min-width: 0;
}
.flowcore-gallery button:hover:enabled { border-color: var(--descrip-text, #999); }
.flowcore-gallery button:focus-visible { outline: 2px solid var(--p-primary-color, #4a90e2); outline-offset: -2px; }
.flowcore-gallery button[aria-pressed="true"] { border-color: var(--p-primary-color, #4a90e2); }
.flowcore-gallery button:disabled { cursor: default; }
/* The last preview, which Nodes 2.0 leaves below the gallery. */
[data-node-id]:has(.flowcore-gallery.done) img.pointer-events-none.contain-size,
[data-node-id]:has(.flowcore-gallery.done) img.pointer-events-none.contain-size + div { display: none; }
.flowcore-gallery img { width: 100%; height: 100%; object-fit: contain; }
.flowcore-gallery img.small { image-rendering: pixelated; }
.flowcore-gallery span {
  position: absolute; left: 0; bottom: 0; max-width: 100%; box-sizing: border-box; padding: 2px 5px; overflow: hidden;
  border-top-right-radius: 5px; font: 10px/1.2 sans-serif; color: #fff; background: rgba(0, 0, 0, 0.55);
  text-overflow: ellipsis; white-space: nowrap;
}
`;

app.registerExtension({
  name: "flowcore.gallery",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Flowcore")) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      show(this, output?.[GALLERY]);
    };
  },
  setup() {
    // The next run shows its previews again.
    api.addEventListener("execution_start", () => {
      for (const grid of finished.values()) grid.classList.remove("done");
      finished.clear();
    });
  },
  // Results that the frontend remembers, of a workflow that is opened again.
  onNodeOutputsUpdated(outputs) {
    for (const [place, output] of Object.entries(outputs)) {
      const node = output?.[GALLERY] && app.graph.getNodeById(place);
      if (node?.comfyClass?.startsWith("Flowcore")) show(node, output[GALLERY]);
    }
  },
});

const finished = new Map(); // from nodes whose gallery is newer than their preview to that gallery

function show(node, pictures) {
  const seed = node.widgets?.find((widget) => widget.name === "seed");
  if (!seed || !pictures?.length) return;
  const gallery = node.widgets.find((widget) => widget.name === GALLERY) ?? hang(node, seed);
  const grid = gallery.element.firstElementChild;
  const columns = Math.min(pictures.length, pictures.length > 9 ? 4 : pictures.length === 4 ? 2 : 3);
  grid.replaceChildren(...pictures.map((picture) => button(node, seed, picture)));
  arrange(grid, columns);
  grid.shape = 1;
  grid.classList.add("done");
  finished.set(node, grid);
  mark(grid, node, seed);
}

function arrange(grid, columns) {
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  grid.rows = Math.ceil(grid.childElementCount / columns);
  grid.columns = columns;
}

function hang(node, seed) {
  const frame = document.createElement("div");
  const grid = document.createElement("div");
  frame.className = "flowcore-gallery-frame";
  grid.className = "flowcore-gallery";
  frame.append(grid);
  // Down here a drag is no drag of the canvas.
  grid.addEventListener("pointerdown", (event) => event.stopPropagation());
  const gallery = addElement(node, GALLERY, frame, () => height(grid, node), LOOK);
  const changed = seed.callback;
  seed.callback = function () {
    const result = changed?.apply(this, arguments);
    mark(grid, node, seed);
    return result;
  };
  // The classic canvas would keep the last preview below the gallery, and loads it late: nothing is drawn, then.
  const draw = node.onDrawBackground;
  node.onDrawBackground = function () {
    if (!finished.has(this)) return draw?.apply(this, arguments);
    const place = this.widgets.findIndex((widget) => widget.name === PREVIEW);
    this.imgs = undefined;
    if (place < 0) return undefined;
    const [preview] = this.widgets.splice(place, 1);
    preview.onRemove?.();
    this.setSize([this.size[0], Math.max(this.computeSize()[1], this.size[1] - (preview.computedHeight ?? 0))]);
    return undefined;
  };
  return gallery;
}

/** The height that all rows need at the node's width, up to MOST. */
function height(grid, node) {
  const { rows = 1, columns = 1, shape = 1 } = grid;
  const width = (node.size[0] - 20 - GAP * (columns - 1)) / columns;
  return Math.min(MOST, Math.round(rows * (width * shape + GAP)));
}

function button(node, seed, picture) {
  const { filename, subfolder, type, seed: value, labels } = picture;
  const made = document.createElement("button");
  made.type = "button";
  made.dataset.seed = value;
  // Larger numbers are not whole in JavaScript: they can be seen, and not written back.
  made.disabled = !Number.isSafeInteger(value);
  const image = document.createElement("img");
  image.alt = "";
  image.draggable = false;
  image.addEventListener("error", () => made.remove()); // gone since: the temp folder is emptied at every start
  image.addEventListener("load", () => settle(image, made, node));
  image.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
  const caption = document.createElement("span");
  caption.textContent = value;
  made.append(image, caption);
  made.addEventListener("click", () => {
    if (wired(node, "seed")) return;
    const others = node.widgets.find((widget) => widget.name === "labels");
    if (labels != null && others && !wired(node, "labels")) set(node, others, labels);
    set(node, seed, value);
    const control = seed.linkedWidgets?.[0] ?? node.widgets.find((widget) => widget.name === "control_after_generate");
    if (control && control.value !== "fixed") {
      set(node, control, "fixed");
      redraw(node, seed);
    }
    mark(made.parentElement, node, seed);
  });
  return made;
}

/** All pictures of a run have one shape: the rows take it. */
function settle(image, made, node) {
  const small = Math.max(image.naturalWidth, image.naturalHeight) < SMALL;
  image.classList.toggle("small", small);
  made.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
  const grid = made.parentElement;
  if (!grid || grid.firstElementChild !== made) return;
  if (small) arrange(grid, Math.max(3, grid.columns)); // enough for pictures of a few pixels
  grid.shape = image.naturalHeight / image.naturalWidth;
  const tall = height(grid, node);
  grid.style.minHeight = `${tall}px`;
  grid.style.maxHeight = `${MOST}px`;
  const [wide, now] = node.size;
  const needed = node.computeSize()[1];
  if (now < needed) node.setSize([wide, needed]);
  node.setDirtyCanvas?.(true, true);
}

/** Show which picture the widget's seed means. */
function mark(grid, node, seed) {
  const blocked = wired(node, "seed");
  for (const made of grid?.children ?? []) {
    const value = made.dataset.seed;
    made.setAttribute("aria-pressed", String(!blocked && value === String(seed.value)));
    say(blocked ? "wired" : "take", { seed: value }).then((text) => {
      made.title = text;
      made.setAttribute("aria-label", text);
    });
  }
}
