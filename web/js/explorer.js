// The pad of Flow Latent Explorer: a square between four images. The widgets `x` and `y` hold the place; the pad only
// shows and writes them.
import { app } from "../../../scripts/app.js";
import { addElement, after, label, set, widgetOf, wired } from "./canvas.js";

const HEIGHT = 200;
const KEYS = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, -0.01], ArrowDown: [0, 0.01] };

const LOOK = document.createElement("style"); // HEIGHT is in it
LOOK.textContent = `
.flowcore-pad {
  container-type: size; display: flex; align-items: center; justify-content: center; min-height: 200px;
}
.flowcore-pad > div {
  position: relative; width: min(100cqw, 100cqh); height: min(100cqw, 100cqh); box-sizing: border-box;
  border: 1px solid var(--border-color, #555); border-radius: 8px; cursor: crosshair; touch-action: none;
  --line: transparent calc(50% - 0.5px), var(--border-color, #555) 0, transparent calc(50% + 0.5px);
  background: linear-gradient(to right, var(--line)), linear-gradient(to bottom, var(--line)),
    var(--comfy-input-bg, #222);
}
.flowcore-pad > div:focus-visible { outline: 2px solid var(--p-primary-color, #4a90e2); }
.flowcore-pad b {
  position: absolute; font: 600 13px/1 sans-serif; color: var(--input-text, #ddd); pointer-events: none;
}
.flowcore-pad b.open { opacity: 0.3; }
.flowcore-pad b:nth-of-type(odd) { left: 8px; }
.flowcore-pad b:nth-of-type(even) { right: 8px; }
.flowcore-pad b:nth-of-type(-n + 2) { top: 8px; }
.flowcore-pad b:nth-of-type(n + 3) { bottom: 8px; }
.flowcore-pad i {
  position: absolute; width: 14px; height: 14px; margin: -7px; box-sizing: border-box; border-radius: 50%;
  border: 2px solid #fff; background: var(--p-primary-color, #4a90e2); box-shadow: 0 0 4px rgba(0, 0, 0, 0.6);
  pointer-events: none;
}
`;

app.registerExtension({
  name: "flowcore.explorer",
  nodeCreated(node) {
    if (node.comfyClass !== "FlowcoreLatentExplorer") return;
    const axes = ["x", "y"].map((name) => widgetOf(node, name));
    if (axes.every(Boolean)) hang(node, axes);
  },
});

function hang(node, axes) {
  const frame = document.createElement("div");
  const pad = document.createElement("div");
  const dot = document.createElement("i");
  frame.className = "flowcore-pad";
  pad.tabIndex = 0;
  pad.setAttribute("role", "application");
  const corners = ["a", "b", "c", "d"].map((name) => Object.assign(document.createElement("b"), { textContent: name }));
  pad.append(...corners, dot);
  frame.append(pad);
  label(pad, "pad");

  const shown = () => {
    dot.style.left = `${100 * axes[0].value}%`;
    dot.style.top = `${100 * axes[1].value}%`;
    for (const corner of corners) corner.classList.toggle("open", !wired(node, corner.textContent));
  };
  const move = (place) => {
    axes.forEach((axis, k) => {
      const value = Math.round(1000 * Math.min(1, Math.max(0, place[k]))) / 1000;
      if (!wired(node, axis.name)) set(node, axis, value);
    });
    shown();
  };
  const follow = (event) => {
    const { left, top, width, height } = pad.getBoundingClientRect(); // as zoomed
    move([(event.clientX - left) / width, (event.clientY - top) / height]);
  };

  pad.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.stopPropagation(); // not a drag of the node
    event.preventDefault();
    pad.focus({ preventScroll: true });
    pad.setPointerCapture(event.pointerId);
    follow(event);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!pad.hasPointerCapture(event.pointerId)) return;
    event.stopPropagation();
    follow(event);
  });
  pad.addEventListener("keydown", (event) => {
    const step = KEYS[event.key];
    if (!step) return;
    event.stopPropagation();
    event.preventDefault();
    move(axes.map((axis, k) => axis.value + (event.shiftKey ? 10 : 1) * step[k]));
  });

  addElement(node, "flowcore_pad", frame, () => HEIGHT, LOOK);
  // Whatever else changes the numbers moves the point.
  for (const axis of axes) after(axis, "callback", shown);
  for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, shown);
  shown();
}
