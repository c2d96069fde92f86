// Pictures of what a node would make of other numbers, asked of the server while they are dragged. The server answers
// between runs, for a node that has run, and refuses otherwise: then nothing new is shown.
import { api } from "../../../scripts/api.js";
import { after } from "./canvas.js";
import { onResult } from "./runs.js";

const KEY = "flowcore_live"; // in a node's output: the name of its run on the server
const PATIENCE = 250; // ms that an answer may take before the next question goes out in its place
const STOPPED = 409; // a run came first, or another question

const every = new Map(); // from nodes of the canvas to their live pictures
let idle = true; // whether the server has nothing to run

api.addEventListener("status", ({ detail }) => {
  idle = !detail?.exec_info?.queue_remaining;
  if (idle) for (const live of every.values()) live.go();
});

onResult((node, output) => {
  const [run] = output[KEY] ?? [];
  if (run !== undefined) every.get(node)?.begin(run);
});

/** The live pictures of a node: one for every place that is asked for, each the latest that has come. */
export class Live {
  #asked = new Map(); // place to numbers, what is to be asked next first
  #flying; // {place, values, since, abort}
  #urls = new Map(); // place to the address of its picture
  #timer;

  /**
   * @param node the node
   * @param begun called when the node has run: it asks for what it wants to see
   * @param show called with a place and the address of its picture
   */
  constructor(node, begun, show) {
    Object.assign(this, { begun, show });
    every.set(node, this);
    after(node, "onRemoved", () => {
      every.delete(node);
      this.#flying?.abort.abort();
      for (const url of this.#urls.values()) URL.revokeObjectURL(url);
    });
  }

  begin(run) {
    this.run = run;
    this.#asked.clear();
    this.begun();
  }

  /** Ask for the picture of some numbers: input to number; others are as they were in the run. */
  ask(place, values) {
    if (!this.run) return;
    this.#asked.delete(place);
    this.#asked = new Map([[place, values], ...this.#asked]);
    this.go();
  }

  go() {
    clearTimeout(this.#timer);
    if (!idle || !this.run || !this.#asked.size) return;
    const wait = this.#flying ? this.#flying.since + PATIENCE - performance.now() : 0;
    if (wait > 0) this.#timer = setTimeout(() => this.go(), wait);
    else this.#fly();
  }

  async #fly() {
    const before = this.#flying;
    before?.abort.abort();
    const [[place, values]] = this.#asked;
    this.#asked.delete(place);
    if (before && before.place !== place) this.#asked.set(before.place, before.values);
    const { run } = this;
    const flying = { place, values, since: performance.now(), abort: new AbortController() };
    this.#flying = flying;
    let pause = 0;
    try {
      const answer = await api.fetchApi("/flowcore/live", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ run, values }),
        signal: flying.abort.signal,
      });
      const picture = answer.ok ? await answer.blob() : undefined;
      if (this.#flying !== flying || this.run !== run) return;
      if (picture) this.#took(place, picture);
      else if (answer.status !== STOPPED) this.run = undefined; // it cannot be seen, or is gone: until the next run
      else {
        pause = PATIENCE;
        if (!this.#asked.has(place)) this.#asked.set(place, values);
      }
    } catch {
      // stopped by the next question, or the server is gone
    } finally {
      if (this.#flying === flying) {
        this.#flying = undefined;
        this.#timer = setTimeout(() => this.go(), pause);
      }
    }
  }

  #took(place, picture) {
    const old = this.#urls.get(place);
    const url = URL.createObjectURL(picture);
    this.#urls.set(place, url);
    this.show(place, url);
    if (old) URL.revokeObjectURL(old);
  }
}

const SMALL = 96; // pixels: such a picture is enlarged without smoothing

/** Show a picture in an image. */
export function sharpen(image, url) {
  image.onload = () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL);
  image.src = url;
}
