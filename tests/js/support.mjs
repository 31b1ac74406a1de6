/**
 * What the tests of the JavaScript client share: vectors, a clock that is told, a scripted server.
 */

import { readFileSync } from "node:fs";

export const vectors = (name) =>
  JSON.parse(readFileSync(new URL(`../vectors/asterql/${name}.json`, import.meta.url), "utf8"));

/** Timers that run only when told how far time has come. */
export class Timers {
  #now = 0;
  #next = 1;
  #due = new Map();

  setTimeout = (run, ms) => {
    const handle = this.#next++;
    this.#due.set(handle, { at: this.#now + ms, run });
    return handle;
  };

  clearTimeout = (handle) => {
    this.#due.delete(handle);
  };

  /** Delays from now, ascending. */
  get pending() {
    return [...this.#due.values()].map(({ at }) => at - this.#now).sort((a, b) => a - b);
  }

  /** Let `ms` pass, running what falls due in order. */
  async advance(ms) {
    const end = this.#now + ms;
    for (;;) {
      await settle();
      const [first] = [...this.#due]
        .filter(([, { at }]) => at <= end)
        .sort(([, a], [, b]) => a.at - b.at);
      if (first === undefined) break;
      this.#due.delete(first[0]);
      this.#now = first[1].at;
      first[1].run();
    }
    this.#now = end;
  }
}

/** Let every promise that can go on go on. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

/** A WebSocket class whose sockets are kept in `sockets`, each with the frames it was given. */
export function fakeWebSocket() {
  const sockets = [];
  class FakeWebSocket {
    sent = [];
    closed = false;

    constructor(url) {
      this.url = url;
      sockets.push(this);
    }

    send(text) {
      if (this.closed) throw new Error("send after close");
      this.sent.push(JSON.parse(text));
    }

    close() {
      this.closed = true;
    }

    /** The frames sent since the last call, without pings unless asked for. */
    take(pings = false) {
      return this.sent.splice(0).filter((frame) => pings || frame.type !== "ping");
    }

    open() {
      this.onopen({});
    }

    deliver(...frames) {
      for (const frame of frames) this.onmessage({ data: JSON.stringify(frame) });
    }

    drop(code = 1006, reason = "") {
      this.closed = true;
      this.onclose({ code, reason });
    }
  }
  return { FakeWebSocket, sockets };
}

export const envelope = (scope, seq, text = "x") => ({
  eventId: `e${seq}`,
  kind: "patch",
  scope,
  seq,
  entities: [{ key: "log:1", patches: [{ op: "appendText", path: "/text", delta: text }] }],
});

export const subscribed = (scope, since, head, { epoch = "E1", floor = 0 } = {}) => ({
  type: "subscribed",
  scope,
  epoch,
  since,
  head,
  floor,
});
