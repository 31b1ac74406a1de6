/** What the modules of this folder throw on purpose. */

import { HoldfastError } from "../holdfast.js";

/**
 * An operation or message that the room would refuse, or did: `code` is a word of the protocol.
 * `retryable` says that the same may be sent again later.
 */
export class RtcError extends HoldfastError {
  constructor(code, message, { retryable = false, messageId = null } = {}) {
    super(code, message);
    this.retryable = retryable;
    this.messageId = messageId;
  }
}
