// The text on our nodes, while they run and afterwards, only in the workflow that ran.
import { areaOf, existingAreaOf, setExtraHeight, isOurs, make, translate } from "./canvas.js";
import { api, app, onStop } from "./frontend.js";
import { translateMessage } from "./messages.js";
import { isHere, nodeAt, onEnd, onResult, onStart } from "./runs.js";

let executing; // path of the running node
let stopping; // the node that was asked to stop
let failed; // the node that shows an error
let failure; // of our latest node that failed: the id of its run, and its message, sent before the host's own
const outdated = new Set(); // texts of an earlier run, which are hidden

app.registerExtension({
  name: "flowcore.text",
  nodeCreated(node) {
    // A node that reports and has a text output shows that text.
    const reports = node.constructor.nodeData?.input?.hidden?.unique_id;
    if (isOurs(node) && reports && node.outputs?.some(({ type }) => type === "STRING")) areaOf(node);
  },
  setup() {
    api.addEventListener("executing", (event) => {
      executing = event.detail?.node ?? event.detail;
      if (executing == null) showStopped();
    });
    api.addEventListener("flowcore.error", ({ detail }) => (failure = detail));
    // The page marks a failed node but does not say there why it failed.
    api.addEventListener("execution_error", ({ detail: { prompt_id: run, node_id: place, exception_message: reason } }) =>
      isHere(run) && showError(nodeAt(place), failure?.prompt_id === run ? failure.message : reason?.trim()));
    api.addEventListener("execution_start", () => failed && show(failed, ""));
    onEnd(({ type, detail }) => {
      showStopped();
      // A run may end before the page has seen its own request to stop it.
      if (type === "execution_interrupted" && isHere(detail.prompt_id)) showStopped(nodeAt(detail.node_id));
      for (const box of outdated) box.classList.remove("outdated"); // the run did not reach them
      outdated.clear();
    });
    api.addEventListener("flowcore.text", ({ detail }) => {
      const { prompt_id: run, node, messages: { text, warnings } = detail } = detail; // an older server sends no messages
      if (isHere(run)) show(nodeAt(node), text, warnings);
    });
    onStop(showStopping);
  },
});

onResult((node, { text, flowcore_notes: notes = [], flowcore_messages: messages = text }) => {
  if (!text) return;
  const shown = messages.map((message) => translateMessage(message, node)), isWarning = text.map((line) => notes.includes(line));
  show(node, shown.filter((_, place) => !isWarning[place]).join("\n"), shown.filter((_, place) => isWarning[place]));
  textOf(node)?.classList.add("result"); // there is none if the node has nothing to say
});

// While a node runs, it does not show what the previous run said.
onStart((node) => {
  const box = textOf(node);
  if (!box?.classList.contains("result")) return;
  box.classList.add("outdated");
  outdated.add(box);
});

/** Add a button below the text of a node, until it is clicked or the text changes. */
export async function offer(node, key, values, act) {
  const onclick = () => {
    button.remove();
    act();
  };
  const button = make("button", { type: "button", onclick }, await translate(key, values));
  const box = boxOf(node);
  (box.firstChild.textContent ? box.firstChild : box).append(" ", button);
}

/** Say on the running node that it will stop. */
async function showStopping() {
  const node = nodeAt(executing);
  if (!isOurs(node) || !isHere()) return;
  stopping = node;
  show(node, await translate("stopping"));
  boxOf(node).classList.add("stopping");
}

/** Say on a node that it has stopped. */
async function showStopped(node = stopping) {
  if (!isOurs(node)) return;
  boxOf(node).classList.remove("stopping");
  await show(node, await translate("stopped"));
  stopping = undefined;
}

/** Show on a node why it failed. */
function showError(node, reason) {
  if (!isOurs(node) || !reason) return;
  show(node, "", [reason]);
  boxOf(node).classList.add("failed");
  failed = node;
}

const textOf = (node) => existingAreaOf(node)?.querySelector(".flowcore-text");

function boxOf(node) {
  const existing = textOf(node), area = areaOf(node);
  if (existing) return existing;
  // Nodes 2.0 gives the wheel to the focused element, else to the canvas.
  const box = make("div", { className: "flowcore-text", role: "status", tabIndex: -1 });
  box.addEventListener("pointerdown", (event) => event.stopPropagation()); // to select text, not to drag the node
  const warning = make("p", { className: "warning" });
  box.append(warning);
  area.append(box);
  area.insertAdjacentHTML("beforeend", STYLE_SHEET);
  // The node grows by the height of the warnings, so that all of them are visible; out of view, they have no height.
  new ResizeObserver(() => (warning.offsetHeight || !warning.textContent) && setExtraHeight(node, warning.offsetHeight)).observe(warning);
  return box;
}

/** Replace the text on one of our nodes, messages or plain texts, warnings first; what is below the first empty line is folded. */
export async function show(node, message, warnings = []) {
  if (!isOurs(node) || !(message || warnings.length || existingAreaOf(node))) return;
  const text = translateMessage(message, node), [visible, ...folded] = text.split("\n\n");
  const box = boxOf(node), warning = box.firstChild;
  warning.textContent = warnings.map((line) => translateMessage(line, node)).join("\n");
  box.replaceChildren(warning, visible);
  box.hidden = !text && !warnings.length;
  box.classList.remove("failed", "result", "outdated");
  box.classList.toggle("table", /\S {2,}\S/.test(text)); // columns keep their places
  if (failed === node) failed = undefined;
  if (!folded.length) return;
  const summary = make("summary");
  box.append(make("details", {}, summary, folded.join("\n\n")));
  summary.textContent = await translate("details");
}

// --- styles

const STYLE_SHEET = `<style>
.flowcore-text {
  flex: 1 1 0; min-height: 0; box-sizing: border-box; padding: 6px 8px; overflow-y: auto; scrollbar-width: thin; border-radius: 6px; user-select: text;
  cursor: text; font: 12px/1.4 sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); white-space: pre-line;
  word-break: normal; overflow-wrap: break-word; }
.flowcore-text, .flowcore-text > * { unicode-bidi: plaintext; }
.flowcore-gallery ~ .flowcore-text, .flowcore-brush .flowcore-text { flex: none; max-height: calc(64px + var(--more, 0px)); }
.flowcore-gallery ~ .flowcore-text:has(details[open]) { max-height: calc(220px + var(--more, 0px)); }
.flowcore-text .warning {
  margin: 0; padding-left: 6px; max-height: 400px; overflow-y: auto; scrollbar-width: thin; border-left: 3px solid orange;
  color: color-mix(in srgb, orange 55%, var(--input-text, #ddd)); }
.flowcore-text .warning:empty { display: none; }
.flowcore-text summary { cursor: pointer; color: var(--descrip-text, #999); }
.flowcore-text.table details { font-family: monospace; white-space: pre-wrap; }
.flowcore-text.outdated { visibility: hidden; }
.flowcore-text.stopping { opacity: 0.7; font-style: italic; }
.flowcore-text.failed .warning { border-color: var(--error-text, #f44); color: inherit; }
</style>`;
