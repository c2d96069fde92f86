// What a node of ours says: while it runs, and with its result. Only on the node that ran, in the workflow that it ran in.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { AREA, areaOf, heighten, isOurs, make, say, widgetOf } from "./canvas.js";
import { onStop } from "./frontend.js";
import { isHere, nodeAt, onResult } from "./runs.js";

const LOOK = `<style>
.flowcore-text {
  flex: 1 1 0; min-height: 0; box-sizing: border-box; padding: 6px 8px; overflow-y: auto; scrollbar-width: thin; border-radius: 6px; user-select: text;
  cursor: text; font: 12px/1.4 sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); white-space: pre-line;
  word-break: normal; overflow-wrap: break-word; }
.flowcore-gallery ~ .flowcore-text { flex: none; max-height: calc(64px + var(--more, 0px)); }
.flowcore-text .warning {
  margin: 0; padding-left: 6px; max-height: 400px; overflow-y: auto; scrollbar-width: thin; border-left: 3px solid orange;
  color: color-mix(in srgb, orange 55%, var(--input-text, #ddd)); }
.flowcore-text .warning:empty { display: none; }
.flowcore-text summary { cursor: pointer; color: var(--descrip-text, #999); }
.flowcore-text.table details { font-family: monospace; white-space: pre-wrap; }
.flowcore-text.stopping { opacity: 0.7; font-style: italic; }
.flowcore-text.failed .warning { border-color: var(--error-text, #f44); color: inherit; }
</style>`;

let executing; // place of the node that runs
let stopping; // the node that was asked to stop
let failed; // the node that shows why it failed

app.registerExtension({
  name: "flowcore.text",
  nodeCreated(node) {
    // What is among its outputs as a text, a node that reports also shows.
    const reports = node.constructor.nodeData?.input?.hidden?.unique_id;
    if (isOurs(node) && reports && node.outputs?.some(({ type }) => type === "STRING")) areaOf(node);
  },
  setup() {
    api.addEventListener("executing", (event) => {
      executing = event.detail?.node ?? event.detail;
      if (executing == null) stopped();
    });
    // The page says that a node failed, and not why.
    api.addEventListener("execution_error", ({ detail: { prompt_id: run, node_id: place, exception_message: reason } }) =>
      isHere(run) && fail(nodeAt(place), reason));
    api.addEventListener("execution_start", () => failed && show(failed, ""));
    for (const end of ["interrupted", "error", "success"]) api.addEventListener(`execution_${end}`, stopped);
    api.addEventListener("flowcore.text", ({ detail: { prompt_id: run, node, text, warnings } }) =>
      isHere(run) && show(nodeAt(node), text, warnings));
    onStop(stop);
  },
});

onResult((node, { text, flowcore_notes: warnings }) =>
  text && show(node, [text].flat().filter((line) => !warnings?.includes(line)).join("\n"), warnings));

/** Offer something below the text of a node, until it is taken or the text is another. */
export async function offer(node, key, values, act) {
  const button = make("button", { type: "button", onclick: () => (button.remove(), act()) }, await say(key, values));
  const box = boxOf(node);
  (box.firstChild.textContent ? box.firstChild : box).append(" ", button);
}

async function stop() {
  const node = nodeAt(executing);
  if (!isOurs(node) || !isHere()) return;
  stopping = node;
  show(node, await say("stopping"));
  boxOf(node).classList.add("stopping");
}

function stopped() {
  if (!stopping) return;
  boxOf(stopping).classList.remove("stopping");
  say("stopped").then((text) => show(stopping, text)).then(() => (stopping = undefined));
}

function fail(node, reason) {
  if (!isOurs(node) || !reason) return;
  show(node, "", [reason.trim()]);
  boxOf(node).classList.add("failed");
  failed = node;
}

function boxOf(node) {
  const area = areaOf(node);
  const there = area.querySelector(".flowcore-text");
  if (there) return there;
  // Nodes 2.0 gives the wheel to what has the focus, and to the canvas otherwise.
  const box = make("div", { className: "flowcore-text", role: "status", tabIndex: -1 });
  box.addEventListener("pointerdown", (event) => event.stopPropagation()); // a text is selected, no node dragged
  const warning = make("p", { className: "warning" });
  box.append(warning);
  area.append(box);
  area.insertAdjacentHTML("beforeend", LOOK);
  // Warnings are seen whole: the node grows by their height. Where nothing is laid out, as out of view, it stays as it is.
  new ResizeObserver(() => (warning.offsetHeight || !warning.textContent) && heighten(node, warning.offsetHeight)).observe(warning);
  return box;
}

/** Show a text on a node of ours in place of the one before, warnings first; what stands below an empty line is folded. */
export async function show(node, text, warnings = []) {
  if (!isOurs(node) || !(text || warnings.length || widgetOf(node, AREA))) return;
  const [first, ...rest] = text.split("\n\n");
  const box = boxOf(node), warning = box.firstChild;
  warning.textContent = warnings.join("\n");
  box.replaceChildren(warning, first);
  box.hidden = !text && !warnings.length;
  box.classList.remove("failed");
  box.classList.toggle("table", /\S {2,}\S/.test(text)); // columns keep their places
  if (failed === node) failed = undefined;
  if (!rest.length) return;
  const name = make("summary");
  box.append(make("details", {}, name, rest.join("\n\n")));
  name.textContent = await say("details");
}
