/**
 * The page: cubes of a room, moved by everyone who has it open.
 *
 * A drag is one edit of the store, committed when the pointer lets go, so that one undo takes back
 * one drag. Until then the others see it as presence: a position that nobody stores.
 *
 * `?server=` names another server than http://127.0.0.1:8420, `&room=` another room than `demo`,
 * `&name=` who you are, `&token=` a token that may write there.
 */

import { slowWebSocket } from "./delay.js";
import { GROUND, View } from "./view.js";

const options = new URLSearchParams(location.search);
const server = options.get("server") ?? "http://127.0.0.1:8420";
const room = options.get("room") ?? "demo";
const { RtcClient } = await import(`${server}/vuer.js`);

const $ = (id) => document.getElementById(id);
const random = () => Math.random().toString(36).slice(2, 10);
const NAMES = ["Otter", "Heron", "Lynx", "Wren", "Hare", "Newt", "Crane", "Badger"];
const HUES = ["#3f6fe0", "#c2487e", "#128a6a", "#b0661a", "#7c56cf", "#20809c"];
const COLOURS = {
  Blue: "#5b8def", Red: "#e5645f", Green: "#4cb782", Yellow: "#e9b949", Violet: "#9b7be0", Grey: "#a8b3c2",
};
const ROOT = "scene";
const STEP = 0.5;

const session = `scene-${random()}${random()}`;
const me = {
  name: (options.get("name") ?? NAMES[Math.floor(Math.random() * NAMES.length)]).slice(0, 24),
  colour: HUES[Math.floor(Math.random() * HUES.length)],
};
let latencyMs = 0;
let selected = null;
let drag = null; // {key, plane, from: [x, y, z], moved, lift}
let cursor = null; // where the pointer is, on the ground
let released = null; // {key, at}: shown to the others until the room has it

const client = new RtcClient(`${server}/rtc/${encodeURIComponent(room)}`, session, {
  token: options.get("token"),
  WebSocket: slowWebSocket(() => latencyMs),
});
const { store } = client;
const view = new View($("canvas"));
document.title = `Scene ${room}`;
document.querySelector("h1").textContent = room === "demo" ? "Scene" : `Scene ${room}`;

// --- the scene -----------------------------------------------------------------------------------

/** The cubes as they stand in the store: `{key, name, position, color}`. */
function cubes() {
  const { graph } = store;
  return graph
    .visible()
    .filter((key) => Array.isArray(graph.value(key, "position")))
    .map((key) => ({ key, ...graph.show(key) }));
}

function insertCube(key, name, position, color) {
  const value = { key, tag: "Mesh", name, position, color };
  return { otype: "node.insert", key, path: "-", parent: ROOT, value };
}

/** What an empty room begins with; keys are fixed, so two that begin at once do the same. */
function begin() {
  store.editBatch([
    { otype: "node.insert", key: ROOT, path: "-", value: { key: ROOT, tag: "Scene", name: room } },
    insertCube("cube-1", "Cube 1", [-1.8, 0.5, 0.6], COLOURS.Blue),
    insertCube("cube-2", "Cube 2", [0.6, 0.5, -1.2], COLOURS.Yellow),
    insertCube("cube-3", "Cube 3", [1.9, 0.5, 1.4], COLOURS.Red),
  ]);
  store.commit();
}

function addCube() {
  const taken = cubes();
  const number = 1 + Math.max(0, ...taken.map(({ name }) => Number(/\d+$/.exec(name)?.[0] ?? 0)));
  const free = ([x, z]) =>
    taken.every(({ position: [cx, , cz] }) => Math.max(Math.abs(cx - x), Math.abs(cz - z)) > 1.3);
  const spots = Array.from({ length: 60 }, (_, i) => {
    const [angle, radius] = [i * 2.4, 0.55 * Math.sqrt(i) + 0.01];
    return [radius * Math.cos(angle), radius * Math.sin(angle)].map((n) => Math.round(n * 10) / 10);
  });
  const [x, z] = spots.find(free) ?? spots[0];
  const key = `cube-${random()}`;
  const colour = document.querySelector("#colours input:checked")?.value ?? COLOURS.Green;
  store.edit(insertCube(key, `Cube ${number}`, [x, 0.5, z], colour));
  store.commit();
  select(key);
}

function removeCube() {
  if (selected === null) return;
  store.edit({ otype: "node.remove", key: selected, path: "-" });
  store.commit();
  select(null);
}

const round = (n) => Math.round(n * 100) / 100;
const within = (n) => Math.min(Math.max(n, -GROUND), GROUND);

/** Where a cube may be: on the ground or above, within the grid. */
const placed = ([x, y, z]) => [within(x), Math.min(Math.max(y, 0.5), 6), within(z)].map(round);

function moveTo(key, position) {
  const before = store.graph.value(key, "position");
  if (before === undefined) return;
  const value = placed(position);
  if (value.some((n, i) => n !== before[i])) {
    store.edit({ otype: "vector3.set", key, path: "position", value });
  }
}

function moveBy(delta) {
  const position = selected === null ? undefined : store.graph.value(selected, "position");
  if (position === undefined) return;
  moveTo(selected, position.map((n, i) => n + delta[i]));
  store.commit();
}

function select(key) {
  selected = key;
  present();
  redraw();
}

// --- the pointer ---------------------------------------------------------------------------------

const canvas = $("canvas");
const pointOf = ({ offsetX, offsetY }) => [offsetX, offsetY];

canvas.addEventListener("pointerdown", (event) => {
  const point = pointOf(event);
  const key = view.pick(point);
  canvas.setPointerCapture(event.pointerId);
  select(key ?? null);
  const last = [event.clientX, event.clientY];
  if (key === undefined) drag = { key: null, last };
  else {
    const from = store.graph.value(key, "position");
    drag = { key, from, start: view.at(point, from[1]), at: from, last };
  }
});

canvas.addEventListener("pointermove", (event) => {
  const point = pointOf(event);
  const ground = view.at(point, 0);
  cursor = ground === null ? null : ground.map(round);
  canvas.toggleAttribute("data-over", drag?.key != null || view.pick(point) !== undefined);
  if (drag !== null) {
    const [dx, dy] = [event.clientX - drag.last[0], event.clientY - drag.last[1]];
    drag.last = [event.clientX, event.clientY];
    if (drag.key === null) view.turn(-dx * 0.008, dy * 0.006);
    else dragCube(event.shiftKey, point, dy);
  }
  present();
  redraw();
});

function dragCube(lift, point, dy) {
  const [x, y, z] = drag.at;
  if (lift) {
    drag.at = placed([x, y - dy * view.unitsPerPixel(drag.at), z]);
    drag.from = drag.at;
    drag.start = view.at(point, drag.at[1]);
  } else {
    const to = view.at(point, y);
    if (to === null) return;
    if (drag.start === null) drag.start = to;
    drag.at = placed([drag.from[0] + to[0] - drag.start[0], y, drag.from[2] + to[2] - drag.start[2]]);
  }
  moveTo(drag.key, drag.at);
}

function drop() {
  if (drag?.key != null && store.commit() !== null) released = { key: drag.key, at: drag.at };
  drag = null;
  present();
  redraw();
}
canvas.addEventListener("pointerup", drop);
canvas.addEventListener("pointercancel", () => {
  store.cancel();
  drag = null;
  present();
});
canvas.addEventListener("pointerleave", () => {
  if (drag !== null) return;
  cursor = null;
  present();
});
canvas.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    view.turn(0, 0, Math.exp(event.deltaY * 0.001));
    redraw();
  },
  { passive: false },
);

// --- keys and buttons ----------------------------------------------------------------------------

const MOVES = {
  ArrowLeft: [-STEP, 0, 0], ArrowRight: [STEP, 0, 0], ArrowUp: [0, 0, -STEP], ArrowDown: [0, 0, STEP],
  PageUp: [0, STEP, 0], PageDown: [0, -STEP, 0],
};

addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (command && key === "z") event.shiftKey ? store.redo() : store.undo();
  else if (command && key === "y") store.redo();
  else if (event.target.matches("input")) return;
  else if (event.key in MOVES && selected !== null) moveBy(MOVES[event.key]);
  else if (event.key === "Delete") removeCube();
  else return;
  event.preventDefault();
});

$("add").addEventListener("click", addCube);
$("remove").addEventListener("click", removeCube);
$("undo").addEventListener("click", () => store.undo());
$("redo").addEventListener("click", () => store.redo());
$("offline").addEventListener("change", ({ target }) =>
  target.checked ? client.disconnect() : client.connect(),
);
$("latency").addEventListener("input", ({ target }) => {
  latencyMs = Number(target.value) / 2; // each way
  $("latency-shown").textContent = `${target.value} ms`;
});

for (const [name, value] of Object.entries(COLOURS)) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), {
    type: "radio", name: "colour", value, ariaLabel: name,
  });
  const dot = document.createElement("span");
  dot.style.setProperty("--colour", value);
  label.title = name;
  label.append(input, dot);
  input.addEventListener("change", () => {
    if (selected === null) return;
    store.edit({ otype: "color.set", key: selected, path: "color", value });
    store.commit();
  });
  $("colours").append(label);
}

// --- presence ------------------------------------------------------------------------------------

/** Tell the others who this is, where the pointer is, and what is being dragged. */
function present() {
  const moving = drag?.key != null ? { key: drag.key, at: drag.at } : released;
  client.setPresence({ ...me, cursor, selected, moving });
}

/** The others who have said who they are. */
const others = () =>
  [...client.members.values()].map(({ state }) => state).filter((state) => typeof state?.name === "string");

// --- showing -------------------------------------------------------------------------------------

let frame = 0; // however much arrives, at most one `show` for each picture on the screen
function redraw() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(show);
}

function show() {
  const list = cubes();
  if (selected !== null && !list.some(({ key }) => key === selected)) selected = null;
  const people = others();
  const moved = new Map(people.flatMap(({ moving }) => (moving ? [[moving.key, moving.at]] : [])));
  if (drag?.key != null) moved.delete(drag.key);
  const accent = getComputedStyle(canvas).getPropertyValue("--accent");
  view.draw(
    list.map(({ key, position, color }) => ({
      key,
      color,
      position: moved.get(key) ?? position,
      outlines: [
        ...(key === selected ? [accent] : []),
        ...people.filter((person) => person.selected === key).map(({ colour }) => colour),
      ],
    })),
    people.filter((person) => person.cursor).map((person) => ({ ...person, position: person.cursor })),
  );
  showCubes(list, moved);
  showPeople(people);
  $("remove").disabled = $("colours").disabled = selected === null;
  $("undo").disabled = !store.canUndo;
  $("redo").disabled = !store.canRedo;
  for (const input of document.querySelectorAll("#colours input")) {
    input.checked = list.some(({ key, color }) => key === selected && color === input.value);
  }
  showState();
}

/** One button for each cube; those that stay are kept, so that the focus stays as well. */
function showCubes(list, moved) {
  const held = new Map([...$("cubes").children].map((item) => [item.dataset.key, item]));
  const items = list.map(({ key, name, position, color }) => {
    const item = held.get(key) ?? cubeItem(key);
    const button = item.firstChild;
    const where = (moved.get(key) ?? position).map((n) => n.toFixed(1)).join(", ");
    button.style.setProperty("--colour", color);
    button.ariaPressed = String(key === selected);
    button.firstChild.data = name;
    button.lastChild.textContent = where;
    return item;
  });
  if (items.some((item, i) => $("cubes").children[i] !== item) || items.length !== held.size) {
    $("cubes").replaceChildren(...items);
  }
}

function cubeItem(key) {
  const item = document.createElement("li");
  item.dataset.key = key;
  const button = document.createElement("button");
  button.append(new Text(), document.createElement("small"));
  button.addEventListener("click", () => select(key));
  item.append(button);
  return item;
}

function showPeople(people) {
  const items = [{ ...me, name: `${me.name} (you)` }, ...people].map(({ name, colour }) => {
    const item = document.createElement("li");
    item.textContent = name;
    item.style.setProperty("--colour", colour);
    return item;
  });
  const shown = (list) => [...list].map((item) => item.textContent + item.style.cssText).join();
  if (shown(items) !== shown($("people").children)) $("people").replaceChildren(...items);
}

function showState() {
  const { name, error } = client.state;
  const waiting = store.pending.length;
  const words = {
    idle: "Offline", connecting: "Connecting", joining: "Joining", live: "Live",
    waiting: "No connection", closed: `Closed: ${error?.message || error?.code}`,
  };
  const count = waiting === 0 ? "" : `, ${waiting} ${waiting === 1 ? "change" : "changes"} to send`;
  const saved = name === "live" && waiting === 0 ? ", all saved" : "";
  $("state").dataset.state = name === "idle" ? "offline" : name;
  const text = words[name] + saved + count;
  if ($("state").textContent !== text) $("state").textContent = text;
}

/** Now and then: does the server hold the same scene? */
async function compare() {
  try {
    const { same, serverSeq } = await client.check();
    if (same !== null) {
      $("agree").textContent = same
        ? `Same scene as the server at message ${serverSeq}`
        : `Another scene than the server at message ${serverSeq}`;
    }
  } catch {
    $("agree").textContent = "";
  }
}

let errorTimer = 0;
function complain(text) {
  clearTimeout(errorTimer);
  $("error").textContent = text;
  $("error").hidden = false;
  errorTimer = setTimeout(() => ($("error").hidden = true), 6000);
}

client.on("state", ({ name }) => {
  $("offline").checked = name === "idle";
  if (name === "live") {
    if (store.graph.rootKey === "") begin();
    compare();
  }
  redraw();
});
client.on("members", redraw);
client.on("error", ({ code, message }) => complain(`Taken back: ${message || code}`));
store.subscribe(() => {
  // What was dragged is in the room now: the others need no more than that.
  if (released !== null && store.pending.length === 0) {
    released = null;
    present();
  }
  redraw();
});
new ResizeObserver(redraw).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
setInterval(() => client.state.name === "live" && store.pending.length === 0 && compare(), 5000);
present();
client.connect();
