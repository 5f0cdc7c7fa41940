// @ts-check
/**
 * What the chat page shows, as plain values: fed by the session's events, read by the view. Pure.
 *
 * @typedef {import("./core.js").Frame} Frame
 * @typedef {import("./transcript.js").AgUiEvent} AgUiEvent
 * @typedef {import("./transcript.js").Message} Message
 *
 * @typedef {{id: string, text: string, whenBusy?: "interrupt", state: "sending"|"taken"|"failed",
 *   runId?: string, problem?: string, repeatable?: boolean}} Waiting
 *   A user message that no run has begun to answer. `repeatable`: the same id may be sent again.
 * @typedef {{key: string, message: Message, explained?: boolean} | {key: string, note: Note}} Item
 *   `explained`: a note says how its run ended.
 * @typedef {{kind: "error"|"stopped"|"usage"|"answer"|"cut", text: string}} Note
 * @typedef {{message: Message, run_id: string, code?: string,
 *   outcome?: "success"|"interrupt"|"cancelled"|"error"}} Past
 *   A message as the HTTP API lists it, with how its run ended, once that is archived.
 */

import { Transcript } from "./transcript.js";

/** @type {Record<string, string>} What the codes mean of which no message is left. */
const FAILURES = {
  internal: "the agent failed",
  no_worker: "there was no agent",
  timeout: "it took too long",
  too_large: "it was too long",
  worker_lost: "the agent was lost",
};

export class Conversation {
  /**
   * @param {Waiting[]} waiting messages of an earlier life of this page
   * @param {boolean} unread there may be messages that are yet to come
   */
  constructor(waiting = [], unread = false) {
    this.unread = unread;
    this.transcript = new Transcript();
    /** @type {Item[]} messages, and notes where they happened */
    this.items = [];
    this.waiting = waiting;
    /** @type {Map<string, "pending"|"queued"|"running"|"cancelling">} runs that are not over */
    this.runs = new Map();
    /** @type {Record<string, any>[]} AG-UI interrupts that await an answer */
    this.questions = [];
    /** @type {string[]} tool calls that await a result of this page */
    this.pendingTools = [];
    /** @type {Set<string>} */
    this._ended = new Set(); // an ack may arrive after its run's last event
    /** @type {Set<string>} runs whose end is noted in `items`, or needs no note */
    this._noted = new Set();
    this._known = 0; // messages of the transcript that are in `items`
    this._notes = 0;
  }

  /** The run that a Stop would cancel. @returns {string | undefined} */
  get openRun() {
    for (const [id, status] of this.runs) if (status === "running") return id;
    return this.runs.keys().next().value;
  }

  /** Attached: what the server says is going on. @param {Frame} frame */
  opened(frame) {
    this._survivors(frame.runs);
    this.questions = frame.interrupts ?? [];
    this.pendingTools = frame.pending_tool_calls ?? [];
  }

  /** The server's log is void; a `replace` follows. @param {Frame} frame */
  reset(frame) {
    this._survivors(frame.runs);
    this._closeInput();
  }

  /** All becomes what these events say. @param {AgUiEvent[]} events */
  replace(events) {
    this.unread = false;
    this.transcript.reset([]);
    this._rebuild();
    for (const event of events) this.event(event.runId ?? "", event);
    for (const message of this.waiting) {
      if (message.state === "taken" && !this.runs.has(message.runId ?? "")) {
        this._fail(message, "This message got no answer.", false);
      }
    }
  }

  /** One event of a run. @param {string} runId @param {AgUiEvent} event */
  event(runId, event) {
    this.transcript.apply(event);
    switch (event.type) {
      case "MESSAGES_SNAPSHOT":
        this._rebuild();
        break;
      case "RUN_STARTED":
        this.runs.set(runId, "running");
        this._closeInput();
        break;
      case "RUN_FINISHED":
        this._finished(runId, event);
        break;
      case "RUN_ERROR":
        this._failed(runId, event);
        break;
      case "CUSTOM":
        // What was asked was dropped (another tab, the API) or has expired.
        if (event.name === "nooble.input_closed") this._closeInput();
        break;
    }
    this._collect();
  }

  /**
   * Whether what is shown begins before the first of these messages.
   * @param {Past[]} past oldest first
   */
  beginsBefore(past) {
    const { messages, byId } = this.transcript;
    return past.length > 0 && messages[0]?.id !== past[0].message.id && byId.has(past[0].message.id);
  }

  /**
   * Notes how runs ended that this page did not see end, and that more was said than a snapshot
   * holds. Answers whether more is to be known later.
   * @param {Past[]} past oldest first; what is shown does not begin before it, unless it is all
   * @param {boolean} older there is more before it
   */
  recall(past, older) {
    const cut = older || (past.length > 0 && !this.transcript.byId.has(past[0].message.id));
    if (cut && this.items[0]?.key !== "cut") {
      this.items.unshift({ key: "cut", note: { kind: "cut", text: "Earlier messages are not shown" } });
    }
    /** @type {Map<string, Past[]>} */
    const runs = new Map();
    for (const one of past) runs.set(one.run_id, [...(runs.get(one.run_id) ?? []), one]);
    const ended = [...runs].filter(([id, [{ outcome }]]) => outcome && !this._noted.has(id));
    const following = new Map([...runs.keys()].map((id, index, ids) => [id, runs.get(ids[index + 1])]));
    for (const [id, said] of ended) {
      const note = noteOf(said, following.get(id));
      if (!note) continue;
      const ids = new Set(said.map(({ message }) => message.id));
      const own = this.items.filter((item) => "message" in item && ids.has(item.message.id));
      if (!own.length) continue;
      for (const item of own) Object.assign(item, { explained: true });
      this._noted.add(id);
      this.items.splice(this.items.indexOf(own[own.length - 1]) + 1, 0, { key: `past-${id}`, note });
    }
    return past.some(({ run_id, outcome }) => !outcome && !this._noted.has(run_id) && !this.runs.has(run_id));
  }

  /** A message of this page, shown before the server has it. @param {Waiting} message */
  add(message) {
    this.waiting = [...this.waiting.filter(({ id }) => id !== message.id), message];
  }

  /** The user gives a message up. @param {Waiting} message */
  discard(message) {
    this.waiting = this.waiting.filter(({ id }) => id !== message.id);
  }

  /** The server has it. @param {string} id @param {import("./nooble.js").Ack} ack */
  taken(id, ack) {
    const runId = ack.run_id ?? "";
    const over = this._ended.has(runId) || (ack.status === "duplicate" && !this.runs.has(runId));
    if (runId && !over && !this.runs.has(runId)) this.runs.set(runId, "queued");
    const message = this.waiting.find((waiting) => waiting.id === id);
    if (!message) return;
    message.state = "taken";
    message.runId = runId;
    if (over) this._fail(message, "This message got no answer.", false);
  }

  /** The server refused it. @param {string} id @param {string} problem @param {boolean} repeatable */
  refused(id, problem, repeatable) {
    const message = this.waiting.find((waiting) => waiting.id === id);
    if (message) this._fail(message, `Not sent: ${problem}`, repeatable);
  }

  /** @param {Note["kind"]} kind @param {string} text */
  note(kind, text) {
    this._notes += 1;
    this.items.push({ key: `note-${this._notes}`, note: { kind, text } });
  }

  /** @param {string} runId @param {AgUiEvent} event */
  _finished(runId, event) {
    this._over(runId);
    this._collect();
    const outcome = event.outcome ?? {};
    if (outcome.type === "interrupt") this.questions = outcome.interrupts ?? [];
    if (outcome.type === "cancelled") this.note("stopped", "Stopped");
    if (outcome.pendingToolCallIds) this.pendingTools = outcome.pendingToolCallIds;
    this._usage(event);
  }

  /** @param {string} runId @param {AgUiEvent} event */
  _failed(runId, event) {
    this._over(runId);
    const unanswered = this.waiting.find((message) => message.runId && message.runId === runId);
    const text = event.message || event.code || "unknown error";
    if (unanswered) return this._fail(unanswered, `No answer: ${text}`, false);
    if (event.code === "cancelled") this.note("stopped", "Stopped");
    else this.note("error", `The answer failed: ${text}`);
    this._usage(event);
  }

  /** @param {AgUiEvent} event */
  _usage({ usage }) {
    const sum = (/** @type {string} */ field) => {
      const known = (usage ?? []).filter((/** @type {any} */ entry) => entry[field] != null);
      return known.length && known.reduce((/** @type {number} */ n, /** @type {any} */ entry) => n + entry[field], 0);
    };
    const into = sum("inputTokens");
    const out = sum("outputTokens");
    const parts = [into && `${count(into)} in`, out && `${count(out)} out`].filter(Boolean);
    if (parts.length) this.note("usage", `Tokens: ${parts.join(", ")}`);
  }

  _closeInput() {
    this.questions = [];
    this.pendingTools = [];
  }

  /** @param {string} runId */
  _over(runId) {
    this.runs.delete(runId);
    this._ended.add(runId);
    this._noted.add(runId);
  }

  /** @param {{run_id: string, status: any}[]} [runs] */
  _survivors(runs = []) {
    this.runs = new Map(runs.map(({ run_id, status }) => [run_id, status]));
  }

  /** @param {Waiting} message @param {string} problem @param {boolean} repeatable */
  _fail(message, problem, repeatable) {
    Object.assign(message, { state: "failed", problem, repeatable });
  }

  _rebuild() {
    this.items = [];
    this._noted.clear();
    this._known = 0;
    this._collect();
  }

  /** New messages of the transcript take their place; those that waited do so no more. */
  _collect() {
    const { messages, byId } = this.transcript;
    for (; this._known < messages.length; this._known += 1) {
      const message = messages[this._known];
      this.items.push({ key: `message-${message.id}`, message });
      if (this.waiting.length) this.waiting = this.waiting.filter(({ id }) => !byId.has(id));
    }
  }
}

/**
 * What is to be said of a run's end. A run that ended with a question was followed by one without a
 * message of the user if he replied; by one with a message if he went on.
 * @param {Past[]} said @param {Past[] | undefined} following
 * @returns {Note | undefined}
 */
function noteOf(said, following) {
  const [{ outcome, code = "" }] = said;
  if (outcome === "cancelled" || code === "cancelled") return { kind: "stopped", text: "Stopped" };
  if (outcome === "error") {
    return { kind: "error", text: `The answer failed: ${FAILURES[code] ?? (code || "unknown error")}` };
  }
  const calls = said.some(({ message }) => message.toolCalls?.length);
  if (outcome !== "interrupt" || calls || !following) return undefined;
  return following.some(({ message }) => message.role === "user")
    ? { kind: "stopped", text: "The question was not answered" }
    : { kind: "answer", text: "You answered or dismissed the question" };
}

/** @param {number} n */
function count(n) {
  return n.toLocaleString("en");
}
