// @ts-check
/**
 * The questions (AG-UI interrupts) on which a run ended, as one form: the controls follow from each
 * question's `responseSchema`. The answer goes out when every question has one.
 */

import { button, byId, create, setText } from "./dom.js";

const OPEN_CONTROL = "fieldset:enabled :is(button, input, textarea)";

export class QuestionForm {
  /**
   * @param {string} key
   * @param {Record<string, any>[]} questions
   * @param {(entries: import("./nooble.js").AnswerEntry[], said: string) => void} submit
   */
  constructor(key, questions, submit) {
    this.key = key;
    this.questions = questions;
    this.submit = submit;
    /** @type {Map<string, {entry: import("./nooble.js").AnswerEntry, said: string}>} */
    this.answers = new Map();
    this.element = create("div", "questions");
    this.element.append(...questions.map((question) => this._question(question)));
  }

  /** Makes the form usable again, after the answer was refused. */
  reopen() {
    this.answers.clear();
    for (const fieldset of this.element.querySelectorAll("fieldset")) fieldset.disabled = false;
  }

  /** @param {Record<string, any>} question */
  _question(question) {
    const fieldset = /** @type {HTMLFieldSetElement} */ (create("fieldset", "question"));
    fieldset.dataset.id = question.id;
    fieldset.append(create("legend", "", question.message || question.reason || "The agent asks"));
    const answer = (/** @type {any} */ entry, /** @type {string} */ said) => {
      const focused = fieldset.contains(document.activeElement);
      fieldset.disabled = true;
      const answered = question.message ? `${question.message} ${said}` : said;
      this.answers.set(question.id, { entry: { interruptId: question.id, ...entry }, said: answered });
      // What is disabled loses the focus: it goes on to what is to be answered or written next.
      const next = /** @type {HTMLElement | null} */ (this.element.querySelector(OPEN_CONTROL));
      if (focused) (next ?? byId("input")).focus();
      if (this.answers.size < this.questions.length) return;
      const answers = this.questions.map(({ id }) => /** @type {any} */ (this.answers.get(id)));
      this.submit(answers.map(({ entry }) => entry), answers.map(({ said }) => said).join(", "));
    };
    const resolve = (/** @type {any} */ payload) =>
      answer({ status: "resolved", payload }, describe(payload));
    const controls = create("div", "controls");
    controls.append(...controlsFor(question, resolve));
    controls.append(button("Dismiss", "link", () => answer({ status: "cancelled" }, "dismissed")));
    fieldset.append(controls);
    return fieldset;
  }
}

/** @param {Record<string, any>} question @param {(payload: any) => void} resolve */
function controlsFor({ id, responseSchema: schema, message }, resolve) {
  if (schema?.type === "boolean") {
    return [button("Yes", "primary", () => resolve(true)), button("No", "", () => resolve(false))];
  }
  if (Array.isArray(schema?.enum)) {
    return schema.enum.map((/** @type {any} */ value) => button(describe(value), "", () => resolve(value)));
  }
  const plain = !schema || schema.type === "string";
  return [field(id, message || "Answer", plain, resolve)];
}

/** @param {string} id @param {string} label @param {boolean} plain @param {(payload: any) => void} resolve */
function field(id, label, plain, resolve) {
  const form = create("form", "field");
  const input = /** @type {HTMLInputElement | HTMLTextAreaElement} */ (
    create(plain ? "input" : "textarea", plain ? "" : "json")
  );
  input.setAttribute("aria-label", plain ? label : `${label} (JSON)`);
  input.placeholder = plain ? "Your answer" : "Your answer as JSON";
  const problem = create("p", "problem");
  problem.id = `problem-${id}`;
  problem.setAttribute("role", "alert");
  input.setAttribute("aria-describedby", problem.id);
  const send = /** @type {HTMLButtonElement} */ (create("button", "primary", "Answer"));
  send.type = "submit";
  form.append(input, send, problem);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    let payload;
    try {
      payload = plain ? input.value : JSON.parse(input.value);
    } catch {
      input.setAttribute("aria-invalid", "true");
      input.focus();
      return setText(problem, "This is not JSON. Text needs \"quotes\".");
    }
    resolve(payload);
  });
  return form;
}

/** @param {any} value */
function describe(value) {
  if (value === true) return "Yes";
  if (value === false) return "No";
  return typeof value === "string" ? value : JSON.stringify(value);
}
