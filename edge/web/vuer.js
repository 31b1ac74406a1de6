/**
 * The vuer-rtc client for browsers and Node: plain ES modules, no build, no dependency.
 *
 *   import { RtcClient } from "/vuer.js";
 *   const client = new RtcClient("/rtc/demo", `ann-${Date.now()}`);
 *   client.store.subscribe(({ keys }) => draw(client.store.graph, keys));
 *   client.connect();
 *   client.store.edit({ otype: "vector3.add", key: "cube", path: "position", value: [1, 0, 0] });
 *   client.store.commit();
 *   client.store.undo();
 *
 * A room is a scene graph and the numbered messages that made it. Every client shows the scene as
 * the server confirmed it, with its own work on top, so nothing waits for the network; the order of
 * the server decides, so all end alike. docs/vuer-rtc.md says how and why.
 *
 * From the bottom up, in the folder `vuer`: text (characters with identities), transforms (what an
 * operation makes of a value), graph (nodes, tree, fold, hash), validate, buffer (edits before a
 * commit), store (confirmed, pending, edits), client (the socket).
 */

export { RtcError } from "./vuer/errors.js";
export { Text, lengthOf, parseTextId } from "./vuer/text.js";
export {
  blendColors,
  compareStamps,
  deepEqual,
  eulerToQuaternion,
  isArray,
  isBoolean,
  isColor,
  isEuler,
  isNumber,
  isObject,
  isQuaternion,
  isString,
  isVector3,
  multiplyQuaternions,
  rotateVector,
} from "./vuer/transforms.js";
export { Graph, applyMessage, applyMessages, stateHash } from "./vuer/graph.js";
export {
  isKey,
  isMeta,
  isPath,
  isSession,
  isValue,
  validateMessage,
  validateOp,
} from "./vuer/validate.js";
export { mergeEdit } from "./vuer/buffer.js";
export { registerOtype } from "./vuer/otypes.js";
export { GraphStore } from "./vuer/store.js";
export { RtcClient, roomUrl } from "./vuer/client.js";
