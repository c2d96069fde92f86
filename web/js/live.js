// Pictures of what a node would make of other numbers, asked of the server while they are dragged. The server answers
// between runs, for a node that has run, and refuses otherwise: then nothing new is shown.
import { api } from "../../../scripts/api.js";
import { after, post } from "./canvas.js";
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

onResult((node, { [KEY]: [run] = [] }) => run !== undefined && every.get(node)?.begin(run));

/** The live pictures of a node: one for every place that is asked for, each the latest that has come. */
export class Live {
  #asked = new Map(); // place to question, what is to be asked next first
  #sent; // the question without an answer yet: {place, question, since, abort}
  #urls = new Map(); // place to the address of its picture
  #timer;

  /** Of a node: `begun` is called when it has run, and asks; `show` with a place and the address of its picture. */
  constructor(node, begun, show) {
    Object.assign(this, { begun, show });
    every.set(node, this);
    after(node, "onRemoved", () => {
      every.delete(node);
      this.run = undefined;
      this.#sent?.abort.abort();
      for (const url of this.#urls.values()) URL.revokeObjectURL(url);
    });
  }

  begin(run) {
    this.run = run;
    this.#asked.clear();
    this.#sent?.abort.abort();
    this.#sent = undefined;
    this.begun();
  }

  /** Ask for the picture of some numbers: input to number; others are as they were in the run. `more` says of what. */
  ask(place, values, more) {
    if (!this.run) return;
    this.#asked.delete(place);
    this.#asked = new Map([[place, { values, ...more }], ...this.#asked]);
    this.go();
  }

  go() {
    clearTimeout(this.#timer);
    if (!idle || !this.run || !this.#asked.size) return;
    const wait = this.#sent ? this.#sent.since + PATIENCE - performance.now() : 0;
    if (wait > 0) this.#timer = setTimeout(() => this.go(), wait);
    else this.#send();
  }

  async #send() {
    const before = this.#sent;
    before?.abort.abort();
    const [[place, question]] = this.#asked;
    this.#asked.delete(place);
    if (before && before.place !== place) this.#askAgain(before);
    const { run } = this;
    const sent = { place, question, since: performance.now(), abort: new AbortController() };
    this.#sent = sent;
    let status, picture;
    try {
      const answer = await post("/flowcore/live", { run, ...question }, { signal: sent.abort.signal });
      if (answer.ok) picture = await answer.blob();
      status = answer.status;
    } catch {
      // stopped by the next question, or the server is gone
    }
    if (this.#sent !== sent) return;
    this.#sent = undefined;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.go(), status === STOPPED ? PATIENCE : 0);
    if (this.run !== run) return;
    if (picture) this.#receive(place, picture);
    else if (status === STOPPED) this.#askAgain(sent);
    else if (status) this.run = undefined; // it cannot be seen, or is gone: until the next run
  }

  /** Ask once more, last of all, unless other numbers of the place are asked for meanwhile. */
  #askAgain({ place, question }) {
    if (!this.#asked.has(place)) this.#asked.set(place, question);
  }

  #receive(place, picture) {
    const old = this.#urls.get(place);
    const url = URL.createObjectURL(picture);
    this.#urls.set(place, url);
    this.show(place, url);
    if (old) URL.revokeObjectURL(old);
  }
}
