/** A WebSocket on a slow line: what is sent and what comes is `delayMs()` late, in its order. */

export function slowWebSocket(delayMs) {
  return class SlowWebSocket {
    #socket;
    #lastOut = 0;
    #lastIn = 0;

    constructor(url) {
      this.#socket = new WebSocket(url);
      this.#socket.onopen = (event) => this.onopen?.(event);
      this.#socket.onerror = (event) => this.onerror?.(event);
      this.#socket.onclose = (event) => this.onclose?.(event);
      this.#socket.onmessage = ({ data }) => {
        this.#lastIn = late(this.#lastIn, delayMs(), () => this.onmessage?.({ data }));
      };
    }

    send(data) {
      const socket = this.#socket;
      this.#lastOut = late(this.#lastOut, delayMs(), () => {
        if (socket.readyState === WebSocket.OPEN) socket.send(data);
      });
    }

    close(code, reason) {
      this.#socket.close(code, reason);
    }
  };
}

/** Run after `ms`, but not before what was to run at `last`; at once where nothing is late. */
function late(last, ms, run) {
  const now = performance.now();
  const due = Math.max(now + ms, last);
  if (due <= now) run();
  else setTimeout(run, due - now);
  return due;
}
