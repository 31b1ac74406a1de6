/** Operations of an application's own. */

import { addOtype } from "./graph.js";
import { expectForeign } from "./objects.js";
import { addValidator } from "./validate.js";

/**
 * Take an operation of your own: `isValid(op)` looks at the operation alone, `change(value, op)`
 * gives the new value of the property (`key`, `path`), or undefined for no effect. Both must be
 * pure, and the server must have registered the same ones, or it refuses the message.
 */
export function registerOtype(otype, isValid, change) {
  addValidator(otype, isValid);
  addOtype(otype, change);
  expectForeign();
}
