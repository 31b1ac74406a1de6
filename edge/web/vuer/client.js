/**
 * A room over a socket: joins, sends, fills gaps, comes back.
 *
 * The client moves frames between a WebSocket and a GraphStore; what is shown never waits for it.
 * Own messages go out in their order and stay pending until they are answered, through any number
 * of connections: the room knows each by its id, so one that is sent again is taken once.
 */

import { reconnectDelayMs } from "../holdfast.js";
import { RtcError } from "./errors.js";
import { stateHash } from "./graph.js";
import { GraphStore } from "./store.js";

const HEARTBEAT_EVERY_MS = 15_000;
const SILENCE_MS = 45_000;
const CONNECT_WITHIN_MS = 15_000;
const SYNC_EVERY_MS = 200;
const PRESENCE_EVERY_MS = 33;
const CHECK_WITHIN_MS = 10_000;
// A margin below the server's 120 messages a second, burst 600.
const BURST = 500;
const PER_S = 100;
const REFILL_EVERY_MS = 100;
/** Closed for good: not allowed, or the session was joined elsewhere. */
const FINAL_CODES = new Set([4401, 4403, 4409]);
const CLOCK_SESSIONS_MAX = 256;

/** Address of the socket of a room: "/rtc/demo", "http://host/rtc/demo", "ws://…". */
export function roomUrl(url, params) {
  const address = new URL(url, globalThis.location?.href);
  address.protocol = address.protocol.replace("http", "ws");
  for (const [name, value] of Object.entries(params)) address.searchParams.set(name, value);
  return address.href;
}

export class RtcClient {
  #url;
  #options;
  #socket = null;
  #timers = new Map();
  #state = { name: "idle" };
  #listeners = new Map([["state", []], ["members", []], ["error", []]]);
  #attempt = 0;
  #joined = false;
  #sent = new Set(); // ids sent on this connection
  #allowance = BURST;
  #paused = false;
  #syncAt = -Infinity;
  #presence = null;
  #presenceSent = null;
  #checks = new Map();
  #lastCheck = 0;
  #gap = null;

  /** Own work and what is shown; see GraphStore. */
  store;
  /** Session id to `{state}` of the others who are in the room. Not to be changed. */
  members = new Map();

  /**
   * `url` is the room's, `sessionId` new for each page: two that join under one name close each
   * other. Options: `token` (a text, or a function that gives one or a promise), `now`, `newId`,
   * and for tests `WebSocket`, `setTimeout`, `clearTimeout`, `random`.
   */
  constructor(url, sessionId, options = {}) {
    this.#url = url;
    this.#options = {
      token: null,
      now: Date.now,
      random: Math.random,
      WebSocket: globalThis.WebSocket,
      setTimeout: (run, ms) => setTimeout(run, ms),
      clearTimeout: (handle) => clearTimeout(handle),
      ...options,
    };
    const { now, newId } = this.#options;
    const more = newId === undefined ? {} : { newId };
    this.store = new GraphStore(sessionId, { now, onSend: () => this.#flush(), ...more });
  }

  /** `{name}`: idle, connecting, joining, live, waiting (with `delayMs`) or closed (with `error`). */
  get state() {
    return this.#state;
  }

  /**
   * Hear of `state`, `members` (map of sessions) or `error` (RtcError of a message that was taken
   * back; `messageId` is its id). Returns a function that ends it.
   */
  on(event, listener) {
    const listeners = this.#listeners.get(event);
    const entry = [listener];
    listeners.push(entry);
    return () => listeners.splice(listeners.indexOf(entry), 1);
  }

  /** Connect, and stay connected until `disconnect`. */
  connect() {
    if (this.#state.name === "idle" || this.#state.name === "closed") this.#connect();
  }

  /** Leave the room and stay away; own work goes on and is sent after the next `connect`. */
  disconnect() {
    if (this.#joined) this.#transmit({ mtype: "leave" });
    this.#detach();
    this.#setState({ name: "idle" });
  }

  /** What the others see of this session, at most 4 KiB of JSON; null: nothing. */
  setPresence(state) {
    this.#presence = state;
    if (!this.#timers.has("presence")) this.#sendPresence();
  }

  /**
   * Ask the server for the hash of the room. Resolves to `{serverSeq, same}`; `same` is null where
   * this store is not as far, or farther. Rejects where no answer comes.
   */
  check() {
    return new Promise((resolve, reject) => {
      const requestId = ++this.#lastCheck;
      const { setTimeout, clearTimeout } = this.#options;
      const timer = setTimeout(() => {
        this.#checks.delete(requestId);
        reject(new RtcError("timeout", "the server did not answer", { retryable: true }));
      }, CHECK_WITHIN_MS);
      this.#checks.set(requestId, (status) => {
        clearTimeout(timer);
        const level = status.serverSeq === this.store.confirmedSeq;
        const same = level ? stateHash(this.store.confirmed) === status.hash : null;
        resolve({ serverSeq: status.serverSeq, same });
      });
      if (this.#joined) this.#transmit({ mtype: "sync-check", requestId });
    });
  }

  // -- frames

  #dispatch(frame) {
    switch (frame.mtype) {
      case "state":
        return this.#loaded(frame);
      case "broadcast":
        return this.#missing(this.store.receive(...(frame.msgs ?? [frame.msg])));
      case "ack":
        return this.#acked(frame);
      case "synced":
        return this.#timer("sync", null);
      case "error":
        return this.#refused(frame);
      case "heartbeat":
        this.store.settle(frame);
        return this.#behind(frame.serverSeq);
      case "presence":
        return this.#seen(frame.sessionId, frame.state);
      case "members":
        return this.#membersChanged(frame);
      case "sync-status":
        this.#checks.get(frame.requestId)?.(frame.status);
        return this.#checks.delete(frame.requestId);
      case "reset":
        // Numbers of another epoch mean nothing here; the `state` that follows brings them.
        if (frame.reason === "cleared") this.store.clear();
        return undefined;
      default:
        return undefined; // what later servers may add
    }
  }

  #loaded(frame) {
    const missing = this.store.load(frame);
    if (frame.members !== undefined) this.#setMembers(frame.members);
    this.#attempt = 0;
    if (!this.#joined) {
      this.#joined = true;
      this.#setState({ name: "live" });
    }
    this.#sent.clear();
    this.#flush();
    if (!this.#timers.has("presence")) this.#sendPresence();
    // With `more` the rest of the journal is on its way.
    if (!frame.more) this.#missing(missing);
  }

  #acked({ msgId, serverSeq, msg, durableSeq }) {
    this.#sent.delete(msgId);
    const missing = this.store.ack(msgId, serverSeq, msg);
    if (durableSeq !== undefined) this.store.settle({ durableSeq });
    this.#missing(missing);
  }

  #refused({ msgId, error: code, message, retryable, retryAfterMs }) {
    const failure = new RtcError(code, message, { retryable, messageId: msgId ?? null });
    if (retryable) {
      this.#sent.clear(); // in order again, from the first that is unanswered
      this.#paused = true;
      const resume = () => {
        this.#paused = false;
        this.#flush();
      };
      this.#timer("resume", resume, Math.max(retryAfterMs ?? 0, 250));
    } else if (msgId !== undefined && msgId !== null) {
      this.#sent.delete(msgId);
      if (this.store.reject(msgId) !== null) this.#emit("error", failure);
    } else if (code === "not_joined" || code === "bad_since") {
      this.#lost({ code, reason: message });
    } else this.#emit("error", failure);
  }

  /** Ask for what is missing after `since`; null: nothing is. */
  #missing(since) {
    this.#gap = since;
    if (since === null || !this.#joined) return;
    const now = this.#options.now();
    const wait = this.#syncAt + SYNC_EVERY_MS - now;
    if (wait > 0) {
      if (!this.#timers.has("sync")) {
        this.#timer("sync", () => this.#gap !== null && this.#missing(this.#gap), wait);
      }
      return;
    }
    this.#syncAt = now;
    this.#transmit({ mtype: "sync", since: this.store.confirmedSeq });
    // The answer may be lost as well.
    this.#timer("sync", () => this.#gap !== null && this.#missing(this.#gap), 5 * SYNC_EVERY_MS);
  }

  /** The room is at `serverSeq`: what does not come by itself is asked for. */
  #behind(serverSeq) {
    if (!(serverSeq > this.store.confirmedSeq)) return;
    const late = () => {
      if (serverSeq > this.store.confirmedSeq) this.#missing(this.store.confirmedSeq);
    };
    this.#timer("behind", late, SYNC_EVERY_MS);
  }

  // -- members

  #setMembers(members) {
    const before = this.members;
    this.members = new Map();
    for (const [session, member] of memberEntries(members)) {
      // Who is not connected may come back within a moment, but is not here.
      if (session !== this.store.sessionId && member?.connected !== false) {
        const state = member?.presence ?? member?.state ?? before.get(session)?.state ?? null;
        this.members.set(session, { state });
      }
    }
    this.#emit("members", this.members);
  }

  #membersChanged({ joined = [], left = [], all }) {
    if (all !== undefined) {
      this.#setMembers(all);
      return;
    }
    for (const [session] of memberEntries(joined)) {
      if (session !== this.store.sessionId && !this.members.has(session)) {
        this.members.set(session, { state: null });
      }
    }
    for (const [session] of memberEntries(left)) this.members.delete(session);
    this.#emit("members", this.members);
  }

  #seen(session, state) {
    if (session === this.store.sessionId) return;
    this.members.set(session, { state });
    this.#emit("members", this.members);
  }

  #sendPresence() {
    if (!this.#joined || this.#presence === this.#presenceSent) return;
    this.#presenceSent = this.#presence;
    this.#transmit({ mtype: "presence", state: this.#presence });
    this.#timer("presence", () => this.#sendPresence(), PRESENCE_EVERY_MS);
  }

  // -- the connection

  #emit(event, value) {
    for (const [listener] of [...this.#listeners.get(event)]) listener(value);
  }

  #setState(state) {
    this.#state = state;
    this.#emit("state", state);
  }

  /** Replace the timer of this name; without `run` end it. */
  #timer(name, run, ms) {
    this.#options.clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
    if (run === null) return;
    const due = () => {
      this.#timers.delete(name);
      run();
    };
    this.#timers.set(name, this.#options.setTimeout(due, ms));
  }

  #connect() {
    this.#detach();
    this.#setState({ name: "connecting" });
    const ticket = {}; // stands for the attempt until there is a socket
    this.#socket = ticket;
    const { token } = this.#options;
    if (typeof token !== "function") {
      this.#open(token);
      return;
    }
    Promise.resolve()
      .then(token)
      .then(
        (value) => this.#socket === ticket && this.#open(value),
        (error) => this.#socket === ticket && this.#lost({ code: "token", reason: String(error) }),
      );
  }

  #open(token) {
    const params = { sessionId: this.store.sessionId };
    if (token) params.token = token;
    const { WebSocket } = this.#options;
    let socket;
    try {
      socket = new WebSocket(roomUrl(this.#url, params));
    } catch (error) {
      this.#lost({ code: "address", reason: String(error) });
      return;
    }
    this.#socket = socket;
    const current = () => this.#socket === socket; // a socket given up may still speak
    socket.onopen = () => current() && this.#opened();
    socket.onmessage = (event) => current() && this.#received(event.data);
    socket.onclose = (event) => current() && this.#lost({ code: event.code, reason: event.reason });
    socket.onerror = () => {}; // `close` follows and says more
    const late = () => this.#lost({ code: "timeout", reason: "no answer in time" });
    this.#timer("open", late, CONNECT_WITHIN_MS);
  }

  #opened() {
    const { epoch, confirmedSeq } = this.store;
    const frame = { mtype: "join", mode: "tail" };
    if (epoch !== "") Object.assign(frame, { epoch, since: confirmedSeq });
    if (this.#presence !== null) frame.presence = this.#presence;
    this.#presenceSent = this.#presence;
    this.#setState({ name: "joining" });
    this.#transmit(frame);
    this.#timer("heartbeat", () => this.#heartbeat(), HEARTBEAT_EVERY_MS);
  }

  #heartbeat() {
    const clock = Object.entries(this.store.vectorClock).slice(-CLOCK_SESSIONS_MAX);
    this.#transmit({
      mtype: "heartbeat",
      sessionId: this.store.sessionId,
      vectorClock: Object.fromEntries(clock),
      confirmedSeq: this.store.confirmedSeq,
    });
    this.#timer("heartbeat", () => this.#heartbeat(), HEARTBEAT_EVERY_MS);
  }

  #received(data) {
    this.#timer("open", null);
    this.#timer("silence", () => this.#lost({ code: "silence", reason: "" }), SILENCE_MS);
    try {
      this.#dispatch(JSON.parse(data));
    } catch (error) {
      // A new connection puts both sides on known ground.
      this.#lost({ code: "bad_frame", reason: String(error) });
    }
  }

  #transmit(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  /** Send what is pending and was not sent on this connection, as fast as the server takes it. */
  #flush() {
    if (!this.#joined || this.#paused) return;
    for (const message of this.store.pending) {
      if (this.#sent.has(message.id)) continue;
      if (this.#allowance <= 0) break;
      this.#allowance--;
      this.#sent.add(message.id);
      this.#transmit({ mtype: "crdt", msg: message });
    }
    if (this.#allowance < BURST && !this.#timers.has("refill")) {
      const refill = () => {
        this.#allowance = Math.min(BURST, this.#allowance + (PER_S * REFILL_EVERY_MS) / 1000);
        this.#flush();
      };
      this.#timer("refill", refill, REFILL_EVERY_MS);
    }
  }

  /** Give up the socket, if there is one, and all that belongs to it. */
  #detach() {
    const socket = this.#socket;
    this.#socket = null;
    for (const name of [...this.#timers.keys()]) this.#timer(name, null);
    this.#joined = false;
    this.#paused = false;
    this.#sent.clear();
    this.#syncAt = -Infinity;
    this.members = new Map();
    socket?.close?.();
  }

  #lost({ code, reason = "" }) {
    this.#detach();
    this.#emit("members", this.members);
    if (FINAL_CODES.has(code)) {
      this.#setState({ name: "closed", code, error: new RtcError(String(code), reason) });
      return;
    }
    const delayMs = reconnectDelayMs(this.#attempt++, this.#options.random());
    this.#timer("retry", () => this.#connect(), delayMs);
    this.#setState({ name: "waiting", delayMs, code, reason });
  }
}

/** Pairs of session and member, of a list of either or a map. */
function memberEntries(members) {
  if (!Array.isArray(members)) return Object.entries(members ?? {});
  return members.map((member) =>
    typeof member === "string" ? [member, null] : [member.sessionId, member],
  );
}
