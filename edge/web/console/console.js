/**
 * The console page: a list of scopes, and one scope followed live.
 *
 * It is a client like any other: the list is `GET /v1/scopes`, everything else goes through
 * holdfast.js. Data reaches the page as text nodes only, never as markup. The scope shown is the
 * location's hash, so that a link leads to it.
 */

import { EntityStore, SyncClient, followScope } from "../holdfast.js";

const ROOT = new URL("..", import.meta.url).pathname; // of the server, or of a tenant's address
const TAIL_ROWS_MAX = 500;
const TAIL_BACK = 200; // entries before the head that a fresh tail shows
const ENTITY_ROWS_MAX = 500;
const ENTITY_RENDER_EVERY_MS = 100;
const SCOPES_PAGE = 50;
const SCOPES_EVERY_MS = 5000;
const FILTER_WAIT_MS = 200;
const PREVIEW_CHARS = 160;
const TOKEN_KEY = "holdfast.token";

const $ = (id) => document.getElementById(id);

/** An element with text and children; `data` may hold anything, it cannot become markup. */
function element(tag, { text, classes = "", title, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  if (title !== undefined) made.title = title;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function show(node, text) {
  node.textContent = text;
  node.hidden = text === "";
}

/** A row that opens to show `value()` as indented JSON, made only when it is opened. */
function expandable(summary, value) {
  const details = element("details", {}, summary);
  details.addEventListener("toggle", () => {
    details.querySelector("pre")?.remove();
    if (details.open) details.append(element("pre", { text: JSON.stringify(value(), null, 2) }));
  });
  return details;
}

// --- the session: token, client, connection state ------------------------------------------------

let client;
let tokenAsked = false;

function connect() {
  client?.close();
  client = new SyncClient(`${ROOT}api/sync`, {
    token: sessionStorage.getItem(TOKEN_KEY),
    tokenIn: "query",
    report(error) {
      console.warn(error);
      show($("notice"), `${error.code ?? error.name}: ${error.message}`);
    },
  });
  client.onState(showConnection);
  showConnection(client.state);
}

function showConnection({ name, delayMs, reason, code }) {
  const texts = {
    open: "connected",
    waiting: `reconnecting in ${((delayMs ?? 0) / 1000).toFixed(1)} s`,
  };
  const badge = $("connection");
  badge.textContent = texts[name] ?? name;
  badge.dataset.state = name;
  badge.title = name === "waiting" ? `${code ?? ""} ${reason ?? ""}`.trim() : "";
}

function setToken(token) {
  if (token === "") sessionStorage.removeItem(TOKEN_KEY);
  else sessionStorage.setItem(TOKEN_KEY, token);
  $("token").value = "";
  tokenAsked = false;
  openToken(false);
  connect();
  loadScopes();
  openScope(scopeInLocation());
}

/** Open the form once where the server wants a token; who closes it is not asked again. */
function askForToken() {
  if (tokenAsked) return;
  tokenAsked = true;
  openToken(true);
}

function openToken(open) {
  $("token-form").hidden = !open;
  $("token-toggle").setAttribute("aria-expanded", String(open));
  if (open) $("token").focus();
}

// --- the list of scopes --------------------------------------------------------------------------

const scopes = { items: [], next: null, pages: 0, request: 0 };

/** Fetch the first page, or with `more` the next one; answers that come too late are dropped. */
async function loadScopes({ more = false } = {}) {
  const request = ++scopes.request;
  const query = new URLSearchParams({ limit: String(SCOPES_PAGE) });
  const prefix = $("scope-filter").value.trim();
  if (prefix !== "") query.set("prefix", prefix);
  if (more && scopes.next !== null) query.set("after", scopes.next);
  const token = sessionStorage.getItem(TOKEN_KEY);
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  try {
    const response = await fetch(`${ROOT}v1/scopes?${query}`, { headers });
    if (request !== scopes.request) return;
    if (!response.ok) throw new Error(await refusal(response));
    const { scopes: found, next } = await response.json();
    if (request !== scopes.request) return;
    scopes.items = more ? [...scopes.items, ...found] : found;
    scopes.pages = more ? scopes.pages + 1 : 1;
    scopes.next = next ?? null;
    renderScopes(prefix === "" ? "There are no scopes yet." : "No scope begins like this.");
  } catch (error) {
    if (request !== scopes.request) return;
    if (error instanceof TypeError && scopes.items.length > 0) return; // no network: keep the list
    Object.assign(scopes, { items: [], next: null, pages: 1 });
    renderScopes(error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
}

async function refusal(response) {
  if (response.status === 401) {
    askForToken();
    const known = sessionStorage.getItem(TOKEN_KEY) !== null;
    return known ? "The server does not take this token." : "The server asks for an access token.";
  }
  if (response.status === 403) {
    return "The list needs an admin token. A scope can still be opened by its name.";
  }
  const problem = await response.json().catch(() => ({}));
  return problem.detail ?? `The server answered ${response.status}.`;
}

function renderScopes(empty) {
  const current = scopeInLocation();
  const rows = scopes.items.map(({ tenant, scope, open, head, subscribers, dialect }) => {
    const more = [
      tenant === "default" ? null : tenant,
      dialect === undefined || dialect === "asterql" ? null : dialect,
      subscribers > 0 ? `${subscribers} subscribed` : null,
    ].filter((part) => part !== null);
    const link = element(
      "a",
      { href: hashOf(scope), title: scope, classes: open ? "open" : "", "data-scope": scope },
      element("span", { text: scope, classes: "name" }),
      element("span", {
        text: head === undefined || head === null ? "" : String(head),
        classes: "seq",
      }),
      ...(more.length > 0 ? [element("span", { text: more.join(" · "), classes: "more" })] : []),
    );
    if (scope === current) link.setAttribute("aria-current", "page");
    return element("li", {}, link);
  });
  const focused = document.activeElement?.dataset?.scope;
  $("scope-list").replaceChildren(...rows);
  const again = rows.find(
    (row) => focused !== undefined && row.firstChild.dataset.scope === focused,
  );
  again?.firstChild.focus();
  show($("scopes-empty"), rows.length === 0 ? empty : "");
  $("scopes-more").hidden = scopes.next === null;
}

function markCurrent(scope) {
  for (const link of $("scope-list").querySelectorAll("a")) {
    if (link.dataset.scope === scope) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// --- the scope in the location -------------------------------------------------------------------

const hashOf = (scope) =>
  `#${encodeURIComponent(scope).replaceAll("%3A", ":").replaceAll("%2F", "/")}`;

function scopeInLocation() {
  const text = location.hash.slice(1);
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a lone % is part of the name
  }
}

// --- the live tail -------------------------------------------------------------------------------

const tail = { waiting: [], seen: 0, paused: false, frame: 0 };

function addToTail(envelope) {
  tail.waiting.push(envelope);
  tail.seen++;
  if (tail.waiting.length > 2 * TAIL_ROWS_MAX) tail.waiting.splice(0, TAIL_ROWS_MAX);
  if (!tail.paused && tail.frame === 0) tail.frame = requestAnimationFrame(renderTail);
}

/** Rows of one turn go in together, newest first; what would not stay is not made. */
function renderTail() {
  tail.frame = 0;
  const rows = tail.waiting.splice(0).slice(-TAIL_ROWS_MAX).reverse().map(tailRow);
  const list = $("tail");
  list.prepend(...rows);
  while (list.children.length > TAIL_ROWS_MAX) list.lastElementChild.remove();
  $("tail-count").textContent = tail.seen.toLocaleString();
  $("tail-empty").hidden = list.children.length > 0;
}

function tailRow(envelope) {
  const { seq, kind, eventId, at } = envelope;
  const time = at === undefined ? "" : new Date(at).toLocaleTimeString([], { hour12: false });
  const summary = element(
    "summary",
    { classes: "row" },
    element("span", { text: String(seq), classes: "seq" }),
    element("span", { text: kind ?? "" }),
    element("span", { text: eventId ?? "", title: eventId ?? "" }),
    element("span", {
      text: time,
      classes: "time",
      title: at === undefined ? "" : new Date(at).toISOString(),
    }),
  );
  return element(
    "li",
    { "data-seq": String(seq) },
    expandable(summary, () => envelope),
  );
}

function clearTail() {
  cancelAnimationFrame(tail.frame);
  Object.assign(tail, { waiting: [], seen: 0, frame: 0 });
  $("tail").replaceChildren();
  $("tail-count").textContent = "0";
  $("tail-empty").hidden = false;
}

function pauseTail(paused) {
  tail.paused = paused;
  const button = $("tail-pause");
  button.setAttribute("aria-pressed", String(paused));
  button.textContent = paused ? "Resume" : "Pause";
  if (!paused) renderTail();
}

// --- the entities --------------------------------------------------------------------------------

const entities = { rows: new Map(), timer: 0 };

function entitiesChanged() {
  if (entities.timer === 0) {
    entities.timer = setTimeout(renderEntities, ENTITY_RENDER_EVERY_MS);
  }
}

/** Bring the rows in line with the store; a row whose record is the same object stays as it is. */
function renderEntities() {
  clearTimeout(entities.timer);
  entities.timer = 0;
  if (shown === null) return;
  const { scope, store } = shown;
  const filter = $("entity-filter").value.trim();
  const found = store.items(scope).filter(([key]) => key.includes(filter));
  const broken = store.broken(scope);
  const list = $("entities");
  const rows = new Map();
  found.slice(0, ENTITY_ROWS_MAX).forEach(([key, value], i) => {
    let row = entities.rows.get(key);
    if (row === undefined) row = entityRow(key);
    if (row.value !== value || row.broken !== broken.has(key)) {
      fillEntityRow(row, value, broken.get(key));
    }
    if (list.children[i] !== row.item) list.insertBefore(row.item, list.children[i] ?? null);
    rows.set(key, row);
  });
  while (list.children.length > rows.size) list.lastElementChild.remove();
  entities.rows = rows;
  $("entity-count").textContent = store.count(scope).toLocaleString();
  const hidden = found.length - rows.size;
  show(
    $("entities-more"),
    hidden > 0 ? `${hidden.toLocaleString()} more: filter to see them.` : "",
  );
}

function entityRow(key) {
  const preview = element("span", { classes: "preview" });
  const summary = element(
    "summary",
    { classes: "row entity" },
    element("span", { text: key, title: key }),
    preview,
  );
  const row = { key, preview, value: undefined, broken: false };
  row.details = expandable(summary, () => row.value);
  row.item = element("li", { "data-key": key }, row.details);
  row.item.addEventListener("animationend", () => row.item.classList.remove("changed"));
  return row;
}

function fillEntityRow(row, value, error) {
  const fresh = row.value === undefined;
  row.value = value;
  row.broken = error !== undefined;
  const text = JSON.stringify(value);
  row.preview.textContent = row.broken ? `broken: ${error.message}` : text.slice(0, PREVIEW_CHARS);
  row.preview.classList.toggle("broken", row.broken);
  const pre = row.details.querySelector("pre");
  if (pre !== null) pre.textContent = JSON.stringify(value, null, 2);
  if (!fresh) row.item.classList.add("changed");
}

// --- one scope -----------------------------------------------------------------------------------

let shown = null; // {scope, store, stop()}

function openScope(scope) {
  shown?.stop();
  shown = null;
  clearTail();
  entities.rows = new Map();
  $("entities").replaceChildren();
  $("entity-count").textContent = "0";
  for (const id of ["scope-error", "publish-result", "notice"]) show($(id), "");
  for (const id of ["head", "floor", "durable", "epoch"]) $(id).textContent = "–";
  $("welcome").hidden = scope !== "";
  $("scope").hidden = scope === "";
  $("scope-name").textContent = scope;
  document.title = scope === "" ? "Holdfast console" : `${scope} – Holdfast console`;
  markCurrent(scope);
  if (scope !== "") shown = follow(scope);
}

/** Follow with two readers: the store from its view on, the tail from a little before the head. */
function follow(scope) {
  const store = new EntityStore();
  let head = 0;
  let tailing = null;
  const moveHead = (seq) => {
    head = seq;
    $("head").textContent = String(seq);
  };
  const failed = (error) => show($("scope-error"), `${error.code}: ${error.message}`);
  const tailFrom = (seq, floor) => Math.max(floor, seq - TAIL_BACK, 0);
  const startTail = ({ seq, epoch }) => {
    tailing ??= client.subscribe(scope, {
      since: tailFrom(seq, 0),
      epoch,
      onEnvelope: addToTail,
      onSubscribed: (name, position) => showPosition(position),
      onSnapshotRequired(name, info) {
        clearTail();
        return { seq: tailFrom(info.head ?? 0, info.floor ?? 0), epoch: info.epoch };
      },
      onError: failed,
    });
  };
  const stopUpdates = store.subscribe(scope, (update) => {
    moveHead(update.seq);
    entitiesChanged();
  });
  const followed = followScope(client, scope, store, {
    durable: true,
    onView: startTail,
    onCaughtUp: () => show($("notice"), ""),
    onDurable(name, position) {
      $("durable").textContent = String(position.seq);
      $("epoch").textContent = position.epoch ?? "–";
    },
    onError: failed,
  });
  return {
    scope,
    store,
    stop() {
      stopUpdates();
      followed.stop();
      tailing?.();
    },
  };

  function showPosition(position) {
    moveHead(Math.max(head, position.head));
    $("floor").textContent = String(position.floor);
    $("epoch").textContent = position.epoch ?? "–";
  }
}

async function publish(event) {
  event.preventDefault();
  const result = $("publish-result");
  const say = (kind, text) => {
    result.dataset.kind = kind;
    show(result, text);
  };
  let value;
  try {
    value = JSON.parse($("publish-value").value);
  } catch (error) {
    say("bad", `The value is no JSON: ${error.message}`);
    return;
  }
  if (shown === null) return;
  const { scope } = shown;
  const key = $("publish-key").value.trim();
  say("", "…");
  const [answer] = await client.publish(scope, { kind: "patch", entities: [{ key, value }] });
  if (shown?.scope !== scope) return;
  if (answer.code === undefined) say("good", `Stored at seq ${answer.seq}.`);
  else say("bad", `${answer.code}: ${answer.message}`);
}

// --- start ---------------------------------------------------------------------------------------

function listen() {
  window.addEventListener("hashchange", () => openScope(scopeInLocation()));
  window.addEventListener("online", () => client.retryNow());
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the hash belongs to the scope
    $("main").focus();
  });
  $("token-toggle").addEventListener("click", () => openToken($("token-form").hidden));
  $("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setToken($("token").value.trim());
  });
  $("token-clear").addEventListener("click", () => setToken(""));
  let filterTimer = 0;
  $("scope-filter").addEventListener("input", () => {
    clearTimeout(filterTimer);
    filterTimer = setTimeout(loadScopes, FILTER_WAIT_MS);
  });
  $("scope-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("scope-filter").value.trim();
    if (name === "") return;
    clearTimeout(filterTimer);
    $("scope-filter").value = "";
    location.hash = hashOf(name);
    loadScopes();
  });
  $("scopes-more").addEventListener("click", () => loadScopes({ more: true }));
  $("tail-pause").addEventListener("click", () => pauseTail(!tail.paused));
  $("entity-filter").addEventListener("input", renderEntities);
  $("publish-form").addEventListener("submit", publish);
  // Later pages stay as they were fetched: refreshing the first would shift what is being read.
  setInterval(() => {
    if (!document.hidden && scopes.pages <= 1) loadScopes();
  }, SCOPES_EVERY_MS);
}

listen();
connect();
loadScopes();
openScope(scopeInLocation());
