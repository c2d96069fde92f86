// What a node of ours says: while it runs, and with its result. Only on the node that ran, in the workflow that it ran in.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addElement, isOurs, say, widgetOf } from "./canvas.js";
import { current, isHere, nodeAt, onResult } from "./runs.js";

const TEXT = "flowcore_text"; // name of the widget
const LEAST = 34;
const MOST = 120; // pixels of height that a text asks for; the rest scrolls

const LOOK = document.createElement("style");
LOOK.textContent = `
.flowcore-text {
  box-sizing: border-box; max-height: ${MOST}px; padding: 6px 8px; overflow-y: auto; border-radius: 6px;
  user-select: text; cursor: text;
  font: 12px/1.4 sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
  white-space: pre-line; word-break: normal; overflow-wrap: break-word;
}
.flowcore-text.table { font-family: monospace; white-space: pre-wrap; }
.flowcore-text.stopping { opacity: 0.7; font-style: italic; }
.flowcore-text.failed { border-left: 3px solid var(--error-text, #f44); }
`;

let executing; // place of the node that runs
let stopping; // the node that was asked to stop
let failed; // the node that shows why it failed

app.registerExtension({
  name: "flowcore.text",
  setup() {
    api.addEventListener("executing", (event) => {
      executing = event.detail?.node ?? event.detail;
      if (executing == null) stopped();
    });
    // The page says that a node failed, and not why.
    api.addEventListener("execution_error", async ({ detail }) => {
      if (await isHere(detail.prompt_id)) fail(nodeAt(detail.node_id), detail.exception_message);
    });
    api.addEventListener("execution_start", () => {
      if (failed) show(failed, "");
    });
    for (const end of ["execution_interrupted", "execution_error", "execution_success"]) {
      api.addEventListener(end, stopped);
    }
    api.addEventListener("flowcore.text", async ({ detail }) => {
      if (await isHere(detail.prompt_id)) show(nodeAt(detail.node), detail.text);
    });
    for (const name of ["interrupt", "cancelJob"]) {
      const ask = api[name];
      if (!ask) continue;
      api[name] = function () {
        stop();
        return ask.apply(this, arguments);
      };
    }
  },
});

onResult((node, { text }) => text && show(node, [text].flat().join("\n")));

async function stop() {
  const node = nodeAt(executing);
  if (!isOurs(node) || !(await isHere(current()))) return;
  stopping = node;
  show(node, await say("stopping"));
  box(node)?.classList.add("stopping");
}

function stopped() {
  if (!stopping) return;
  box(stopping)?.classList.remove("stopping");
  say("stopped").then((text) => show(stopping, text)).then(() => (stopping = undefined));
}

function fail(node, reason) {
  if (!isOurs(node) || !reason) return;
  show(node, reason.trim());
  box(node).classList.add("failed");
  failed = node;
}

const box = (node) => widgetOf(node, TEXT)?.element.firstElementChild;

/** Show a text on a node of ours in place of the one before; an empty one hides it. */
export function show(node, text) {
  if (!isOurs(node) || (!box(node) && !text)) return;
  const shown = box(node) ?? hang(node);
  shown.textContent = text;
  shown.classList.remove("failed");
  if (failed === node) failed = undefined;
  shown.classList.toggle("table", /\S {2,}\S/.test(text)); // columns keep their places
  shown.style.display = text ? "" : "none";
  settle(node, shown);
}

function hang(node) {
  const frame = document.createElement("div");
  const shown = document.createElement("div");
  shown.className = "flowcore-text";
  shown.setAttribute("role", "status");
  shown.tabIndex = -1; // Nodes 2.0 gives the wheel to what has the focus, and to the canvas otherwise
  frame.dataset.captureWheel = "true";
  shown.addEventListener("pointerdown", (event) => event.stopPropagation()); // a text is selected, no node dragged
  frame.append(shown);
  addElement(node, TEXT, frame, () => height(shown), LOOK);
  // Lines break anew when the node gets its place on the page, and when it is made wider.
  let wide;
  new ResizeObserver(() => {
    if (frame.clientWidth === wide) return;
    wide = frame.clientWidth;
    settle(node, shown);
  }).observe(frame);
  return shown;
}

const height = (shown) => (shown.style.display ? 0 : Math.min(MOST, Math.max(LEAST, shown.tall ?? LEAST)));

/** Make room for a text: in the classic canvas nothing else asks how high it is. */
function settle(node, shown) {
  requestAnimationFrame(() => {
    shown.tall = shown.scrollHeight;
    const needed = node.computeSize()[1];
    if (node.size[1] < needed) node.setSize([node.size[0], needed]);
    node.setDirtyCanvas?.(true, true);
  });
}
