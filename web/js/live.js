// Live pictures: previews of what a node makes of changed numbers, requested from the server while a person drags sliders. The
// server answers only between runs, and only for nodes that have run; see nodes/live.py.
import { patchAfter, post } from "./canvas.js";
import { api } from "./frontend.js";
import { onResult } from "./runs.js";

const KEY = "flowcore_live"; // in a node's output: the name of its run on the server
const PATIENCE = 250; // ms after which a request makes way for the next one, and a stopped one is sent again
const STOPPED = 409; // status: a run, or another request, came first

const liveByNode = new Map();
let idle = true; // whether the server has nothing to run

api.addEventListener("status", ({ detail }) => {
  idle = !detail?.exec_info?.queue_remaining;
  if (idle) for (const live of liveByNode.values()) live.sendNext();
});

onResult((node, { [KEY]: [run] = [] }) => run !== undefined && liveByNode.get(node)?.begin(run));

/** The live pictures of a node, one per slot, such as a corner of a pad. One request is in flight at a time, newest first. */
export class Live {
  #waiting = new Map(); // from a slot to its question, the newest first
  #sent; // the request in flight: {slot, question, since, abort}
  #urls = new Map(); // from a slot to the URL of its picture
  #timer;

  /** `onRun` is called after a run of the node, to ask; `onPicture` with a slot and the URL of its picture. */
  constructor(node, onRun, onPicture) {
    Object.assign(this, { onRun, onPicture });
    liveByNode.set(node, this);
    patchAfter(node, "onRemoved", () => {
      liveByNode.delete(node);
      this.run = undefined;
      this.#sent?.abort.abort();
      for (const url of this.#urls.values()) URL.revokeObjectURL(url);
    });
  }

  begin(run) {
    this.run = run;
    this.#waiting.clear();
    this.#sent?.abort.abort();
    this.#sent = undefined;
    this.onRun();
  }

  /** Ask for a picture with some values, by input; all others are those of the run. `more` says which sample and where. */
  ask(slot, values, more) {
    if (!this.run) return;
    this.#waiting.delete(slot);
    this.#waiting = new Map([[slot, { values, ...more }], ...this.#waiting]);
    this.sendNext();
  }

  sendNext() {
    clearTimeout(this.#timer);
    if (!idle || !this.run || !this.#waiting.size) return;
    const wait = this.#sent ? this.#sent.since + PATIENCE - performance.now() : 0;
    if (wait > 0) this.#timer = setTimeout(() => this.sendNext(), wait);
    else this.#send();
  }

  async #send() {
    const before = this.#sent;
    before?.abort.abort();
    const [[slot, question]] = this.#waiting;
    this.#waiting.delete(slot);
    if (before && before.slot !== slot) this.#askAgain(before);
    const { run } = this;
    const sent = { slot, question, since: performance.now(), abort: new AbortController() };
    this.#sent = sent;
    let status, picture;
    try {
      const answer = await post("/flowcore/live", { run, ...question }, { signal: sent.abort.signal });
      if (answer.ok) picture = await answer.blob();
      status = answer.status;
    } catch {
      // the next request came first, or the server is gone
    }
    if (this.#sent !== sent) return;
    this.#sent = undefined;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.sendNext(), status === STOPPED ? PATIENCE : 0);
    if (this.run !== run) return;
    if (picture) this.#receive(slot, picture);
    else if (status === STOPPED) this.#askAgain(sent);
    else if (status) this.run = undefined; // there are no live pictures until the next run
  }

  /** Ask again, after all others, unless there is a newer question for the slot. */
  #askAgain({ slot, question }) {
    if (!this.#waiting.has(slot)) this.#waiting.set(slot, question);
  }

  #receive(slot, picture) {
    const old = this.#urls.get(slot);
    const url = URL.createObjectURL(picture);
    this.#urls.set(slot, url);
    this.onPicture(slot, url);
    if (old) URL.revokeObjectURL(old);
  }
}
