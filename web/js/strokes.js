// Brush strokes as the nodes take them, see flowcore/images/strokes.py: their text, and how they look on a canvas.

const COLD = [36, 92, 201], MILD = [236, 232, 220], HOT = [214, 62, 38]; // of amounts, as of the temperature's slider
const DIGITS = 1e4; // of places and sizes that are kept
const STRAIGHT = 0.0008; // how far a point may lie off the line between its neighbors to be left out

/** Read strokes; what is no text of strokes is none. */
export function parse(text) {
  try {
    const read = JSON.parse(text || "[]");
    const is = (stroke) => stroke?.points?.length && stroke.points.every((p) => p.every(Number.isFinite)) && stroke.size > 0;
    return Array.isArray(read) ? read.filter(is) : [];
  } catch {
    return [];
  }
}

/** Write strokes, one a line. */
export const format = (strokes) => (strokes.length ? `[${strokes.map((stroke) => JSON.stringify(stroke)).join(",\n")}]` : "");

/** Leave out the points that a straight line passes anyway, and digits that nobody sees. */
export const simplified = (points) =>
  thinned(points).map((point) => point.map((share) => Math.round(share * DIGITS) / DIGITS));

function thinned(points) {
  if (points.length < 3) return points;
  const [first, last] = [points[0], points.at(-1)];
  let far = 0, place = 0;
  for (let k = 1; k < points.length - 1; k++) {
    const off = distance(points[k], first, last);
    if (off > far) [far, place] = [off, k];
  }
  if (far < STRAIGHT) return [first, last];
  return [...thinned(points.slice(0, place + 1)).slice(0, -1), ...thinned(points.slice(place))];
}

function distance([x, y], [u, v], [s, t]) {
  const length = (s - u) ** 2 + (t - v) ** 2;
  const along = length ? Math.min(1, Math.max(0, ((x - u) * (s - u) + (y - v) * (t - v)) / length)) : 0;
  return Math.hypot(x - u - along * (s - u), y - v - along * (t - v));
}

/** The color of an amount, as CSS writes it. */
export function heat(amount) {
  const [from, to, share] = amount < 0.55 ? [COLD, MILD, amount / 0.55] : [MILD, HOT, (amount - 0.55) / 0.45];
  return `rgb(${from.map((value, k) => Math.round(value + (to[k] - value) * share)).join(" ")})`;
}

/** Draw strokes on a canvas, from nothing. */
export function draw(canvas, strokes) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    context.strokeStyle = stroke.color ?? (stroke.erase ? "#000" : heat(stroke.amount ?? 0));
    context.lineWidth = Math.max(1, stroke.size * Math.max(width, height));
    context.beginPath();
    const [start, ...way] = stroke.points;
    context.moveTo(start[0] * width, start[1] * height);
    for (const [x, y] of way.length ? way : [start]) context.lineTo(x * width, y * height);
    context.stroke();
  }
}
