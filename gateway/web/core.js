// @ts-check
/**
 * The client core: order, duplicates, resume, resend and backoff. It is protocol/cursor.py in
 * JavaScript, and as pure: no sockets, no clock, no randomness of its own. The shell around it opens
 * sockets and sleeps; this says what to send and what a frame means. It holds the cursor, so "no
 * gap, no duplicate" is decided here and nowhere else.
 */

export const BACKOFF_BASE_MS = 500;
export const BACKOFF_CAP_MS = 30_000;
/**
 * A connection that was attached for this long ends a series of failures; so a server that attaches
 * every client and then fails it is not stormed.
 */
export const STABLE_AFTER_MS = 5_000;

/**
 * @typedef {{epoch: string, seq: number, ts?: number}} Cursor
 * @typedef {import("./transcript.js").AgUiEvent} AgUiEvent
 * @typedef {{type: string, [field: string]: any}} Frame  A frame of the wire, as JSON.
 * @typedef {Frame & {id: string}} Command  A client frame that the server answers.
 * @typedef {"no"|"yes"|"after a new token"|"with a new session"|"after retry_after_ms"} Policy
 *
 * @typedef {{kind: "deliver", seq: number, runId: string, ts: number, event: AgUiEvent}
 *   | {kind: "replace", events: AgUiEvent[]}
 *   | {kind: "attached", opened: Frame}
 *   | {kind: "answered", re: string, answer: Frame}
 *   | {kind: "notice", frame: Frame}
 *   | {kind: "resend", command: Command}
 *   | {kind: "broken", expectedSeq: number, gotSeq: number}} Outcome
 */

/** @type {Record<number, Policy>} What a client does after each close code. */
const RECONNECT = {
  1000: "no", // done
  1009: "no", // frame too big
  1012: "yes", // the node restarts or drains
  4400: "no", // bad frame
  4401: "after a new token",
  4403: "no", // forbidden
  4404: "with a new session", // unknown session
  4408: "yes", // no `open` in time, or no pong
  4410: "with a new session", // session ended
  4426: "no", // no common version
  4429: "after retry_after_ms", // too many messages or connections
  4503: "yes", // overloaded, or this client reads too slowly
};

/**
 * The policy for any close code. One that is not ours (1006: the network) says nothing about the
 * session, so the client comes back; 1002, 1003 and 1007 say that the peer cannot understand us.
 * @param {number} code
 * @returns {Policy}
 */
export function reconnectPolicy(code) {
  return RECONNECT[code] ?? ([1002, 1003, 1007].includes(code) ? "no" : "yes");
}

/** A command that was refused, or that no server will answer any more. */
export class NoobleError extends Error {
  /** @param {{code: string, message: string, retryable?: boolean, retry_after_ms?: number}} error */
  constructor({ code, message, retryable = false, retry_after_ms }) {
    super(message);
    this.name = "NoobleError";
    this.code = code;
    /** True when the same command, with the same id, may succeed later. */
    this.retryable = retryable;
    this.retryAfterMs = retry_after_ms;
  }
}

/** What a client knows about one session, whatever connections come and go. Pure. */
export class ClientCore {
  /**
   * Either `agent` (a new session) or `sessionId` (an existing one) must be given.
   * @param {{agent?: string, sessionId?: string, cursor?: Cursor, token?: string,
   *   metadata?: Record<string, any>, onDetach?: "continue"|"cancel"}} options
   */
  constructor({ agent, sessionId, cursor, token, metadata, onDetach }) {
    if (!agent && !sessionId) throw new TypeError("give an agent or a sessionId");
    this.agent = agent;
    this.sessionId = sessionId;
    this.cursor = cursor;
    this.token = token;
    this.metadata = metadata;
    this.onDetach = onDetach;
    this.attached = false;
    this._ts = 0; // of the event at the cursor; 0: not known
    /** @type {Map<string, Command>} */
    this._unanswered = new Map();
    /** @type {string | undefined} */
    this._openId = undefined;
    this._failures = 0;
    /** @type {number | undefined} */
    this._goawayMs = undefined;
    /** @type {number | undefined} */
    this._refusedMs = undefined;
    /** @type {number | undefined} */
    this._limitedMs = undefined;
  }

  /** Commands without an answer yet, oldest first. */
  get unanswered() {
    return [...this._unanswered.values()];
  }

  /**
   * The first frame of a new connection: a new session, or this one from the cursor on.
   * @param {string} openId
   * @returns {Frame}
   */
  connected(openId) {
    this._openId = openId;
    this.attached = false;
    /** @type {Frame} */
    const open = { type: "open", id: openId };
    if (this.token) open.token = this.token;
    if (this.sessionId) {
      open.session_id = this.sessionId;
      if (this.cursor) open.after = this._ts ? { ...this.cursor, ts: this._ts } : this.cursor;
    } else {
      open.agent = this.agent;
      if (this.metadata) open.metadata = this.metadata;
      if (this.onDetach) open.on_detach = this.onDetach;
    }
    return open;
  }

  /**
   * Remembers a command until it is answered. True when it may be sent now.
   * @param {Command} command
   */
  send(command) {
    this._unanswered.set(command.id, command);
    return this.attached;
  }

  /**
   * What a frame means. After `broken` the connection must be dropped. A type that a later server
   * may send means nothing.
   * @param {Frame} frame
   * @returns {Outcome[]}
   */
  receive(frame) {
    switch (frame.type) {
      case "event":
        return this._event(frame);
      case "opened":
        return this._opened(frame);
      case "snapshot":
        this.cursor = frame.cursor;
        this._ts = 0;
        return [{ kind: "replace", events: frame.events }];
      case "ack":
        this._unanswered.delete(frame.re);
        return [{ kind: "answered", re: frame.re, answer: frame }];
      case "error":
        return this._error(frame);
      case "reset":
        // Void at once: a connection lost before the snapshot must not resume in a log that the
        // server has just disowned.
        this.cursor = undefined;
        return [{ kind: "notice", frame }];
      case "goaway":
        this._goawayMs = frame.reconnect_in_ms;
        return [{ kind: "notice", frame }];
      case "expiring":
      case "pong":
        return [{ kind: "notice", frame }];
      default:
        return [];
    }
  }

  /**
   * What to do after the connection ended or could not be made.
   *
   * `goaway` says when to come back, and has spread that over time already. What a refusal says is
   * the earliest time, the same for every client, and is spread here.
   * @param {number} code the close code; 1006 when there was none
   * @param {{random: number, attachedMs: number}} now
   *   `random` is uniform in [0, 1), for full jitter; `attachedMs` says for how long the session was
   *   attached over this connection, 0 if never
   * @returns {{kind: "retry", afterMs: number} | {kind: "give-up", code: number, policy: Policy}}
   */
  disconnected(code, { random, attachedMs }) {
    this.attached = false;
    const policy = reconnectPolicy(code);
    if (policy !== "yes" && policy !== "after retry_after_ms") {
      return { kind: "give-up", code, policy };
    }
    if (attachedMs >= STABLE_AFTER_MS) this._failures = 0;
    const { _goawayMs: goawayMs, _refusedMs: refusedMs, _limitedMs: limitedMs } = this;
    // It was said of the connection that ended: further attempts, which may fail, back off.
    this._goawayMs = this._refusedMs = this._limitedMs = undefined;
    if (goawayMs !== undefined) return { kind: "retry", afterMs: Math.max(0, goawayMs) };
    let earliestMs = refusedMs;
    if (policy === "after retry_after_ms") earliestMs ??= limitedMs;
    const ceilingMs = Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** Math.min(this._failures, 16));
    this._failures += 1;
    return { kind: "retry", afterMs: Math.max(0, earliestMs ?? 0) + random * ceilingMs };
  }

  /** @param {Frame} opened @returns {Outcome[]} */
  _opened(opened) {
    this.sessionId = opened.session_id;
    this.agent = opened.agent;
    this.attached = true;
    if (!opened.resumed) this.cursor = undefined;
    /** @type {Outcome[]} */
    const outcomes = [{ kind: "attached", opened }];
    for (const command of this.unanswered) outcomes.push({ kind: "resend", command });
    return outcomes;
  }

  /** @param {Frame} frame @returns {Outcome[]} */
  _event(frame) {
    // Before any snapshot there is nothing to add to.
    if (!this.cursor) return [{ kind: "broken", expectedSeq: 0, gotSeq: frame.seq }];
    const expectedSeq = this.cursor.seq + 1;
    if (frame.seq < expectedSeq) return []; // a duplicate
    const first = frame.from ?? frame.seq;
    if (first !== expectedSeq) return [{ kind: "broken", expectedSeq, gotSeq: first }];
    this.cursor = { epoch: this.cursor.epoch, seq: frame.seq };
    this._ts = first === frame.seq ? frame.ts : 0;
    const { seq, run_id: runId, ts, event } = frame;
    return [{ kind: "deliver", seq, runId, ts, event }];
  }

  /** @param {Frame} error @returns {Outcome[]} */
  _error(error) {
    const delayMs = error.retry_after_ms ?? undefined;
    if (error.re == null || error.re === this._openId) {
      this._refusedMs = delayMs;
      return [{ kind: "notice", frame: error }];
    }
    // That this command may come again later says nothing about the connection, unless the
    // connection is then closed for too many of them (4429).
    this._limitedMs = delayMs;
    this._unanswered.delete(error.re);
    return [{ kind: "answered", re: error.re, answer: error }];
  }
}
