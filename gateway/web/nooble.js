// @ts-check
/**
 * A client of nooble-gateway for browsers (and any JavaScript with `WebSocket`): no dependencies, no
 * build step.
 *
 *     import { NoobleSession, Transcript } from "/web/nooble.js";
 *
 *     const transcript = new Transcript();
 *     const session = new NoobleSession({ url: "wss://host/ws", agent: "demo" });
 *     session.on("event", ({ event }) => transcript.apply(event));
 *     session.on("replace", (events) => transcript.reset(events));
 *     session.connect();
 *     const { run_id } = await session.send("Hello");
 *
 * `NoobleSession` is the shell: WebSocket, timers, promises. What is sent and what a frame means is
 * decided by `ClientCore` (core.js). `Transcript` (transcript.js) folds events into messages.
 */

import { ClientCore, NoobleError } from "./core.js";

export { ClientCore, NoobleError, reconnectPolicy } from "./core.js";
export { Transcript } from "./transcript.js";

export const SUBPROTOCOL = "nooble.v1";

/** The socket must be attached to its session within this time, and a ping be answered. */
const ATTACH_TIMEOUT_MS = 15_000;
const PONG_TIMEOUT_MS = 10_000;
/** As the network's end of a connection: it says nothing about the session. */
const NO_CLOSE_FRAME = 1006;

const ENDS = new Set(["RUN_FINISHED", "RUN_ERROR"]);

/**
 * @typedef {import("./core.js").Cursor} Cursor
 * @typedef {import("./core.js").Frame} Frame
 * @typedef {import("./core.js").Command} Command
 * @typedef {import("./core.js").Outcome} Outcome
 * @typedef {import("./core.js").Policy} Policy
 * @typedef {import("./core.js").AgUiEvent} AgUiEvent
 * @typedef {{re: string, status: "accepted"|"queued"|"duplicate", run_id?: string}} Ack
 * @typedef {{interruptId: string, status: "resolved"|"cancelled", payload?: any}} AnswerEntry
 * @typedef {"idle"|"connecting"|"open"|"waiting"|"closed"} Status
 */

/**
 * One session over WebSockets that come and go: reconnects and resumes by itself, and waits for an
 * agent that no worker serves yet.
 *
 * Events (`on(name, listener)`):
 * - `status` (status, detail): `connecting`, `open`, `waiting` `{afterMs, code, reason, error?}`, or
 *   `closed` for good `{code, reason, policy, error?}`
 * - `opened` (frame): attached to the session, with its state, open runs and open questions
 * - `event` ({seq, runId, ts, event}): an AG-UI event, in order and each once
 * - `replace` (events): what was shown is void and becomes these AG-UI events
 * - `notice` (frame): `reset`, `goaway` or `expiring`
 * - `error` (NoobleError): an error that answers no command
 */
export class NoobleSession {
  /** @type {Status} */
  #status = "idle";
  /** @type {WebSocket | undefined} */
  #socket;
  /** @type {Map<string, Set<(...args: any[]) => void>>} */
  #listeners = new Map();
  /** @type {Map<string, {resolve: (ack: any) => void, reject: (error: NoobleError) => void}>} */
  #waiting = new Map();
  /** @type {NoobleError | undefined} */
  #complaint; // what the server said last that answers no command
  /** @type {string | undefined} */
  #openRun; // the run that is being answered, as far as it is known
  #heardAt = 0;
  #attachedAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer; // until the next attempt, or until this one must be attached
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #heartbeat;

  /**
   * @param {{url: string, agent?: string, sessionId?: string, cursor?: Cursor, token?: string,
   *   metadata?: Record<string, any>, onDetach?: "continue"|"cancel"}} options  `agent` for a new
   *   session, `sessionId` for an old one; with `onDetach: "cancel"` the new session's runs are
   *   cancelled when its last client has been away for the server's resume grace
   */
  constructor({ url, ...options }) {
    this.url = url;
    this.core = new ClientCore(options);
  }

  get status() {
    return this.#status;
  }

  /** The session's id; undefined until the first `opened`. */
  get sessionId() {
    return this.core.sessionId;
  }

  /** How far this client has read; store it and pass it as `cursor` to go on from there. */
  get cursor() {
    return this.core.cursor;
  }

  /**
   * Calls `listener` on every `name`; the result takes it off again.
   * @param {"status"|"opened"|"event"|"replace"|"notice"|"error"} name
   * @param {(...args: any[]) => void} listener
   */
  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /** Connects now: the first time, or without waiting for the next attempt. */
  connect() {
    if (this.#status !== "idle" && this.#status !== "waiting") return;
    this.#complaint = undefined;
    this.#setStatus("connecting");
    const socket = new WebSocket(this.url, [SUBPROTOCOL]);
    this.#socket = socket;
    this.#after(ATTACH_TIMEOUT_MS, () => this.#drop(4408, "no answer from the server"));
    socket.onopen = () => this.#transmit(this.core.connected(newId()));
    socket.onmessage = ({ data }) => this.#received(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
  }

  /**
   * Sends a user message. Resolves with the acknowledgement: the message is safe and has a run.
   * @param {string | object[]} content
   * @param {{id?: string, whenBusy?: "enqueue"|"reject"|"interrupt", tools?: object[]}} [options]
   *   the same `id` again never makes a second run
   * @returns {Promise<Ack>}
   */
  send(content, { id = newId(), whenBusy, tools } = {}) {
    return this.#command({ type: "message", id, content, when_busy: whenBusy, tools });
  }

  /**
   * Cancels a run, by default the open one. Safe when nothing runs.
   * @param {string} [runId]
   * @returns {Promise<Ack>}
   */
  async cancel(runId) {
    // Named, where it is known: a bare one that is sent again after a lost answer could hit the run
    // after it.
    const id = newId();
    try {
      return await this.#command({ type: "cancel", id, run_id: runId ?? this.#openRun });
    } catch (error) {
      const over = error instanceof NoobleError && error.code === "run_not_found";
      if (runId === undefined && over) return { re: id, status: "accepted" };
      throw error;
    }
  }

  /**
   * Answers every interrupt on which the last run ended.
   * @param {AnswerEntry[]} entries
   * @returns {Promise<Ack>}
   */
  answer(entries) {
    const wire = entries.map(({ interruptId, ...rest }) => ({ interrupt_id: interruptId, ...rest }));
    return this.#command({ type: "answer", id: newId(), entries: wire });
  }

  /**
   * The result of a tool that this client ran.
   * @param {string} toolCallId
   * @param {string | object[]} content
   * @param {string} [error]
   * @returns {Promise<Ack>}
   */
  toolResult(toolCallId, content, error) {
    // One id for a call: of several tabs that run the same tool, one result counts, and the others
    // get `id_conflict`.
    const id = `tool-result:${toolCallId}`.slice(0, 128);
    return this.#command({ type: "tool_result", id, tool_call_id: toolCallId, content, error });
  }

  /**
   * Ends the session itself, for every tab.
   * @returns {Promise<Ack>}
   */
  end() {
    return this.#command({ type: "close", id: newId() });
  }

  /** Leaves the session; it lives on at the server. */
  disconnect() {
    this.#release(1000);
    this.#close({ code: 1000, reason: "disconnected", policy: "no" });
  }

  /** @param {Command} command @returns {Promise<Ack>} */
  #command(command) {
    return new Promise((resolve, reject) => {
      if (this.#status === "closed") return reject(gone("this session is closed"));
      this.#waiting.set(command.id, { resolve, reject });
      if (this.core.send(command)) this.#transmit(command);
    });
  }

  /** @param {Frame} frame */
  #transmit(frame) {
    // A frame that a dying socket swallows is sent again after the next `opened`.
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }

  /** @param {string} data */
  #received(data) {
    this.#heardAt = Date.now();
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return this.#drop(NO_CLOSE_FRAME, "the server sent no JSON");
    }
    for (const outcome of this.core.receive(frame)) this.#act(outcome);
  }

  /** @param {Outcome} outcome */
  #act(outcome) {
    switch (outcome.kind) {
      case "deliver":
        this.#note(outcome.runId, outcome.event);
        return this.#emit("event", outcome);
      case "replace":
        this.#openRun = undefined;
        for (const event of outcome.events) this.#note(event?.runId, event);
        return this.#emit("replace", outcome.events);
      case "attached":
        clearTimeout(this.#timer);
        this.#attachedAt = Date.now();
        this.#watch(outcome.opened.heartbeat_ms);
        this.#setStatus("open");
        return this.#emit("opened", outcome.opened);
      case "resend":
        return this.#transmit(outcome.command);
      case "answered": {
        const waiting = this.#waiting.get(outcome.re);
        this.#waiting.delete(outcome.re);
        if (outcome.answer.type === "ack") waiting?.resolve(outcome.answer);
        else waiting?.reject(new NoobleError(/** @type {any} */ (outcome.answer)));
        return;
      }
      case "notice":
        if (outcome.frame.type === "error") {
          this.#complaint = new NoobleError(/** @type {any} */ (outcome.frame));
          return this.#emit("error", this.#complaint);
        }
        if (outcome.frame.type !== "pong") this.#emit("notice", outcome.frame);
        return;
      case "broken":
        return this.#drop(NO_CLOSE_FRAME, "an event was missing");
    }
  }

  /** Which run is open. @param {any} runId @param {AgUiEvent} event */
  #note(runId, event) {
    if (event?.type === "RUN_STARTED") this.#openRun = runId;
    else if (ENDS.has(event?.type) && runId === this.#openRun) this.#openRun = undefined;
  }

  /** Scripts do not see a server's pings, so silence is probed with our own. @param {number} ms */
  #watch(ms) {
    if (!ms) return;
    this.#heartbeat = setInterval(() => {
      const silentMs = Date.now() - this.#heardAt;
      if (silentMs > ms + PONG_TIMEOUT_MS) this.#drop(NO_CLOSE_FRAME, "the connection was silent");
      else if (silentMs >= ms) this.#transmit({ type: "ping", t: Date.now() });
    }, Math.min(ms, PONG_TIMEOUT_MS));
  }

  /** @param {number} ms @param {() => void} action */
  #after(ms, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, ms);
  }

  /** Lets go of the socket without waiting for its close. @param {number} [closeCode] */
  #release(closeCode) {
    clearTimeout(this.#timer);
    clearInterval(this.#heartbeat);
    const socket = this.#socket;
    this.#socket = undefined;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(closeCode);
  }

  /** @param {number} code @param {string} reason */
  #drop(code, reason) {
    this.#release();
    this.#lost(code, reason);
  }

  /** @param {number} code @param {string} reason */
  #lost(code, reason) {
    this.#release();
    const attachedMs = this.core.attached ? Date.now() - this.#attachedAt : 0;
    const error = this.#complaint;
    // A page may be there before the first worker of its agent; it need not be loaded again.
    const early = error?.code === "agent_not_found";
    const next = this.core.disconnected(early ? NO_CLOSE_FRAME : code, { random: Math.random(), attachedMs });
    if (next.kind === "give-up") return this.#close({ code, reason, policy: next.policy });
    this.#after(next.afterMs, () => this.connect());
    this.#setStatus("waiting", { afterMs: next.afterMs, code, reason, error });
  }

  /** @param {{code: number, reason: string, policy: Policy}} detail */
  #close(detail) {
    if (this.#status === "closed") return;
    this.#setStatus("closed", { ...detail, error: this.#complaint });
    for (const { reject } of this.#waiting.values()) reject(gone("the connection was closed"));
    this.#waiting.clear();
  }

  /** @param {Status} status @param {object} [detail] */
  #setStatus(status, detail = {}) {
    this.#status = status;
    this.#emit("status", status, detail);
  }

  /** @param {string} name @param {any[]} args */
  #emit(name, ...args) {
    for (const listener of this.#listeners.get(name) ?? []) listener(...args);
  }
}

/** A random id; `crypto.randomUUID` exists on secure origins only. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {string} message */
function gone(message) {
  return new NoobleError({ code: "closed", message });
}
