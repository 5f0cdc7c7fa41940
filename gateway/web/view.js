// @ts-check
/**
 * The chat page's DOM. `render` brings it up to date with the conversation, at most once per frame.
 * Whatever an agent or a person wrote becomes text nodes and nothing else.
 *
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Item} Item
 * @typedef {import("./conversation.js").Waiting} Waiting
 */

import { byId, button, create, setText } from "./dom.js";
import { QuestionForm } from "./question.js";

/** The reader is at the bottom when this close to it. */
const BOTTOM_PX = 48;

export class View {
  /**
   * @param {{retry: (message: Waiting) => void, discard: (message: Waiting) => void,
   *   answer: (entries: any[], said: string) => void}} actions
   */
  constructor(actions) {
    this.actions = actions;
    this.agent = "agent";
    /** @type {Map<string, HTMLElement>} */
    this._elements = new Map();
    this._stick = true;
    this._frame = 0;
    /** @type {QuestionForm | undefined} */
    this._form = undefined;
    this.scroller = byId("scroller");
    this.scroller.addEventListener("scroll", () => this._scrolled(), { passive: true });
    const resized = new ResizeObserver(() => this._stick && this._toBottom());
    resized.observe(this.scroller);
    resized.observe(byId("questions"));
    byId("latest").addEventListener("click", () => {
      this.follow();
      this.scroller.focus();
    });
  }

  /** Renders in the next frame, however often it is asked to. @param {() => Conversation} current */
  schedule(current) {
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0;
      this.render(current());
    });
  }

  /** Goes to the bottom and stays there. */
  follow() {
    this._stick = true;
    this._toBottom();
  }

  /** @param {Conversation} conversation */
  render(conversation) {
    this._reconcile(byId("log"), "log:", conversation.items, (element, item) =>
      "note" in item
        ? renderNote(element, item.note)
        : renderMessage(element, item, conversation, this.agent));
    this._reconcile(byId("waiting"), "waiting:", conversation.waiting.map(asItem), (element, item) =>
      this._renderWaiting(element, item.waiting));
    this._renderRun(conversation);
    this._renderQuestions(conversation);
    const empty = !conversation.items.length && !conversation.waiting.length;
    byId("welcome").hidden = !empty || conversation.unread;
    if (this._stick) this._toBottom();
  }

  /**
   * The container's children become one element per item, in order; known ones are kept.
   * @template {{key: string}} T
   * @param {HTMLElement} container
   * @param {string} prefix
   * @param {T[]} items
   * @param {(element: HTMLElement, item: T) => void} update
   */
  _reconcile(container, prefix, items, update) {
    const wanted = new Set(items.map(({ key }) => prefix + key));
    for (const element of /** @type {HTMLElement[]} */ ([...container.children])) {
      const key = element.dataset.key ?? "";
      if (wanted.has(key)) continue;
      this._elements.delete(key);
      element.remove();
    }
    let next = container.firstElementChild;
    for (const item of items) {
      const key = prefix + item.key;
      let element = this._elements.get(key);
      if (!element) {
        element = create("article", "");
        element.dataset.key = key;
        this._elements.set(key, element);
      }
      update(element, item);
      if (element === next) next = next.nextElementSibling;
      else container.insertBefore(element, next);
    }
  }

  /** @param {HTMLElement} element @param {Waiting} message */
  _renderWaiting(element, message) {
    const shape = `${message.state} ${message.problem ?? ""}`;
    if (element.dataset.shape === shape) return;
    element.dataset.shape = shape;
    element.className = `message ${message.state}`;
    element.dataset.role = "user";
    element.dataset.id = message.id;
    element.replaceChildren(create("span", "visually-hidden", "You: "), create("div", "text", message.text));
    if (message.state !== "failed") {
      const text = message.state === "sending" ? "Sending" : "Waiting for the agent";
      element.append(create("p", "caption", text));
    } else {
      const retry = button("Send again", "link", () => this.actions.retry(message));
      const discard = button("Discard", "link", () => this.actions.discard(message));
      const problem = create("p", "problem", `${message.problem} `);
      problem.append(retry, " ", discard);
      element.append(problem);
    }
  }

  /** @param {Conversation} conversation */
  _renderRun({ runs, openRun, transcript }) {
    const status = openRun && runs.get(openRun);
    const stop = /** @type {HTMLButtonElement} */ (byId("stop"));
    const stopping = status === "cancelling";
    // A button that is disabled or hidden loses the focus.
    if ((stopping || !status) && document.activeElement === stop) byId("input").focus();
    stop.hidden = !status;
    stop.disabled = stopping;
    setText(stop, stopping ? "Stopping…" : "Stop");
    // What only waits says so itself, see `_renderWaiting`.
    byId("working").hidden = (status !== "running" && !stopping) || transcript.openIds.size > 0;
    setText(byId("working-text"), stopping ? "Stopping" : "Working");
  }

  /** @param {Conversation} conversation */
  _renderQuestions({ questions }) {
    const key = questions.map(({ id }) => id).join(" ");
    if ((this._form?.key ?? "") === key) return;
    const container = byId("questions");
    if (container.contains(document.activeElement)) byId("input").focus();
    this._form = key ? new QuestionForm(key, questions, this.actions.answer) : undefined;
    container.replaceChildren(...(this._form ? [this._form.element] : []));
    byId("input").setAttribute(
      "placeholder",
      key ? "Answer above, or move on" : "Write a message",
    );
  }

  /** An answer was refused: the question can be answered again. */
  reopenQuestions() {
    this._form?.reopen();
  }

  /** @param {string} text empty to hide it */
  alert(text) {
    byId("alert").hidden = !text;
    setText(byId("alert-text"), text);
  }

  _scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this._stick = scrollHeight - scrollTop - clientHeight < BOTTOM_PX;
    byId("latest").hidden = this._stick;
  }

  _toBottom() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

/**
 * @param {HTMLElement} element
 * @param {Extract<Item, {message: any}>} item
 * @param {Conversation} conversation
 * @param {string} agent
 */
function renderMessage(element, { message, explained }, { transcript }, agent) {
  const { role, id } = message;
  if (!element.firstChild) {
    element.className = "message";
    element.dataset.role = role;
    element.dataset.id = id;
    element.hidden = role !== "user" && role !== "assistant";
    element.append(create("span", "visually-hidden", role === "user" ? "You: " : `${agent}: `));
    element.append(create("div", "text"), create("div", "calls"));
  }
  // What a snapshot brings is the agent's own: any JSON.
  const calls = (Array.isArray(message.toolCalls) ? message.toolCalls : []).filter(
    (call) => typeof call?.function?.arguments === "string",
  );
  const open = transcript.openIds.has(id);
  element.classList.toggle("open", open);
  // Read aloud when it is complete, not word by word.
  element.setAttribute("aria-busy", String(open));
  const [, text, callList] = /** @type {HTMLElement[]} */ ([...element.children]);
  setText(text, textOf(message.content));
  text.hidden = !text.textContent;
  if (calls.length) renderCalls(callList, calls, transcript);
  // Only as long as no note says why.
  const cutOff = message.metadata?.incomplete && !explained;
  const problem = element.querySelector(".problem");
  if (cutOff && !problem) element.append(create("p", "problem", "This answer was cut off."));
  else if (!cutOff) problem?.remove();
}

/**
 * @param {HTMLElement} list
 * @param {{id: string, function: {name: string, arguments: string}}[]} calls
 * @param {import("./transcript.js").Transcript} transcript
 */
function renderCalls(list, calls, transcript) {
  calls.forEach((call, index) => {
    const result = transcript.messages.find(({ toolCallId }) => toolCallId === call.id);
    let details = /** @type {HTMLElement | undefined} */ (list.children[index]);
    if (!details) {
      details = create("details", "call");
      const summary = create("summary", "");
      summary.append(create("span", "name"), create("span", "outcome"));
      details.append(summary, create("pre", "arguments"), create("pre", "result"));
      list.append(details);
    }
    const part = (/** @type {string} */ name) =>
      /** @type {HTMLElement} */ (/** @type {HTMLElement} */ (details).querySelector(`.${name}`));
    setText(part("name"), `Tool ${call.function.name}`);
    const state = result ? (result.error ? "failed" : "done") : transcript.openIds.has(call.id) ? "being called" : "called";
    setText(part("outcome"), state);
    setText(part("arguments"), call.function.arguments);
    setText(part("result"), result ? result.error || textOf(result.content) : "");
  });
}

/** @param {HTMLElement} element @param {import("./conversation.js").Note} note */
function renderNote(element, note) {
  if (element.firstChild) return;
  element.className = `note ${note.kind}`;
  element.append(create("p", "", note.text));
}

/** @param {Waiting} waiting */
function asItem(waiting) {
  return { key: waiting.id, waiting };
}

/** A message's text; parts that are no text are named. @param {any} content @returns {string} */
function textOf(content) {
  if (content == null) return "";
  if (!Array.isArray(content)) return String(content);
  return content.map((part) => part?.text ?? `[${part?.type ?? "attachment"}]`).join("");
}
