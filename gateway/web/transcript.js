// @ts-check
/**
 * AG-UI events to messages: protocol/transcript.py in JavaScript. Events come from agents, so any
 * JSON object must do: one that lacks what its type demands changes nothing.
 *
 * @typedef {{type: string, [field: string]: any}} AgUiEvent  One AG-UI 1.0 event.
 * @typedef {{id: string, role: string, [field: string]: any}} Message  One AG-UI message.
 */

/** The messages of a session, brought up to date event by event. */
export class Transcript {
  constructor() {
    /** @type {Message[]} in order of appearance */
    this.messages = [];
    /** @type {Set<string>} messages and tool calls that were begun and not ended, or not by themselves */
    this.openIds = new Set();
    /** @type {Map<string, Message>} */
    this.byId = new Map();
    /** @type {Map<string, {id: string, type: string, function: {name: string, arguments: string}}>} */
    this.calls = new Map();
  }

  /** Becomes what these events say. @param {AgUiEvent[]} events */
  reset(events) {
    this._clear();
    for (const event of events) this.apply(event);
  }

  /** Folds one event in. One of an unknown type changes nothing. @param {AgUiEvent} event */
  apply(event) {
    switch (event?.type) {
      case "RUN_STARTED":
        this._addAll(event.input?.messages);
        break;
      case "MESSAGES_SNAPSHOT":
        if (!Array.isArray(event.messages)) break;
        this._clear();
        this._addAll(event.messages);
        break;
      case "TEXT_MESSAGE_START":
      case "TEXT_MESSAGE_CONTENT":
      case "TEXT_MESSAGE_END":
        if (isText(event.messageId)) this._applyText(event);
        break;
      case "TOOL_CALL_START":
      case "TOOL_CALL_ARGS":
      case "TOOL_CALL_END":
        if (isText(event.toolCallId)) this._applyCall(event);
        break;
      case "TOOL_CALL_RESULT": {
        const { messageId: id, toolCallId, content } = event;
        if (!isText(toolCallId) || content === undefined) break;
        this._add({ id, role: "tool", toolCallId, content });
        break;
      }
      case "RUN_FINISHED":
      case "RUN_ERROR":
        this.openIds.clear();
        break;
    }
  }

  /** @param {AgUiEvent} event */
  _applyText({ type, messageId: id, role, delta, incomplete }) {
    if (type === "TEXT_MESSAGE_START") {
      this.openIds.add(id);
      this._message(id, isText(role) && role ? role : "assistant");
    } else if (type === "TEXT_MESSAGE_END") {
      if (incomplete !== true) this.openIds.delete(id);
    } else if (isText(delta)) {
      const message = this._message(id, "assistant");
      const content = message.content ?? "";
      if (isText(content)) message.content = content + delta;
    }
  }

  /** @param {AgUiEvent} event */
  _applyCall({ type, toolCallId: id, toolCallName: name, parentMessageId, delta, incomplete }) {
    const call = this.calls.get(id);
    if (type === "TOOL_CALL_END") {
      if (incomplete !== true) this.openIds.delete(id);
    } else if (type === "TOOL_CALL_ARGS") {
      if (call && isText(delta)) call.function.arguments += delta;
    } else if (!call && isText(name)) {
      this._startCall(id, name, isText(parentMessageId) && parentMessageId ? parentMessageId : id);
    }
  }

  _clear() {
    this.messages = [];
    this.openIds.clear();
    this.byId.clear();
    this.calls.clear();
  }

  /** @param {any} messages */
  _addAll(messages) {
    if (Array.isArray(messages)) for (const message of messages) this._add(message);
  }

  /** @param {any} message */
  _add(message) {
    if (!isText(message?.id) || this.byId.has(message.id)) return;
    const copy = structuredClone(message); // ours from here on: what was passed in never changes
    this.byId.set(copy.id, copy);
    this.messages.push(copy);
    if (!Array.isArray(copy.toolCalls)) return;
    for (const call of copy.toolCalls) {
      if (isText(call?.id) && isText(call.function?.arguments)) this.calls.set(call.id, call);
    }
  }

  /** @param {string} id @param {string} role @returns {Message} */
  _message(id, role) {
    if (!this.byId.has(id)) this._add({ id, role, content: "" });
    return /** @type {Message} */ (this.byId.get(id));
  }

  /** @param {string} id @param {string} name @param {string} parentId */
  _startCall(id, name, parentId) {
    this._add({ id: parentId, role: "assistant" }); // nothing, when it is there
    const parent = /** @type {Message} */ (this.byId.get(parentId));
    const call = { id, type: "function", function: { name, arguments: "" } };
    if (!Array.isArray(parent.toolCalls)) parent.toolCalls = [];
    parent.toolCalls.push(call);
    this.calls.set(id, call);
    this.openIds.add(id);
  }
}

/** @param {any} value @returns {value is string} */
function isText(value) {
  return typeof value === "string";
}
