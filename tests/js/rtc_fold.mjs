/**
 * Folds the histories that come in, one as JSON on each line, and prints what they end in: a hash
 * and the scene, and the hash after a round trip through the wire form; `codes` of the refused.
 */

import { createInterface } from "node:readline";

import { Graph, applyMessages, stateHash, validateMessage } from "../../edge/web/vuer.js";

/** Why a message is refused, null where it is not. */
function codeOf(message) {
  try {
    validateMessage(message);
    return null;
  } catch (error) {
    if (error.code === undefined) throw error;
    return error.code;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const messages = JSON.parse(line);
  const codes = messages.map(codeOf);
  const graph = applyMessages(new Graph(), messages.filter((_, i) => codes[i] === null));
  const again = Graph.fromJSON(JSON.parse(JSON.stringify(graph)));
  console.log(JSON.stringify({ codes, hash: stateHash(graph), again: stateHash(again), graph }));
}
