// @ts-check
/**
 * The chat page: wires a session (nooble.js) to what it means (conversation.js) and how it looks
 * (view.js).
 *
 * The page lives in one tab: `sessionStorage` holds the session's id and the messages that no run
 * has taken up yet. After a reload the page comes without a cursor, since what it showed is gone,
 * gets a snapshot, and sends those messages again under their own ids. `?agent=name` chooses the
 * agent, `#session=id` follows a session of another tab.
 */

import { Conversation } from "./conversation.js";
import { button, byId, setText } from "./dom.js";
import { NoobleSession, newId } from "./nooble.js";
import { runTool, TOOLS } from "./tools.js";
import { View } from "./view.js";

const STORAGE_KEY = "nooble.chat";
/** What a message's frame has beside the text. */
const ENVELOPE_BYTES = 2048;
/** @type {Record<number, string>} For closes that come without a reason. */
const CLOSED = { 1000: "done", 4401: "sign in again", 4403: "not allowed", 4426: "reload the page" };
/** Before each look at how earlier runs ended. */
const RECALL_PAUSES_MS = [0, 1000, 3000, 9000];
const SUGGESTIONS = ["Hello there", "/slow", "/ask", "/tool", "/burst 1000"];

const agent = new URLSearchParams(location.search).get("agent") || "demo";
const input = /** @type {HTMLTextAreaElement} */ (byId("input"));
const view = new View({ retry, discard, answer });

/** @type {NoobleSession} */
let session;
let conversation = new Conversation();
/** @type {string} */
let closedPolicy = "";
let countdown = 0;
let maxFrameBytes = 64 * 1024;

/**
 * Begins with a session: an old one by its id, or a new one.
 * @param {string} [sessionId]
 * @param {import("./conversation.js").Waiting[]} [waiting] messages to send again
 */
function begin(sessionId, waiting = []) {
  const before = session;
  conversation = new Conversation(waiting, sessionId !== undefined);
  const current = conversation;
  const handledTools = new Set();
  const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`;
  const mine = new NoobleSession({ url, agent, sessionId });
  session = mine;
  showLink();

  const changed = () => {
    if (current !== conversation) return;
    save();
    redraw();
  };
  mine.on("status", (status, detail) => current === conversation && showStatus(status, detail));
  mine.on("opened", (frame) => {
    current.opened(frame);
    maxFrameBytes = frame.limits?.max_frame_bytes ?? maxFrameBytes;
    showAgent(frame.agent);
    showLink();
    // With a cursor nothing is replaced: what the tools need is here already.
    if (frame.resumed) runTools(mine, current, handledTools);
    changed();
  });
  mine.on("replace", (events) => {
    current.replace(events);
    runTools(mine, current, handledTools);
    changed();
    if (current.transcript.messages.length) void recall(mine, current);
  });
  mine.on("event", ({ runId, event }) => {
    current.event(runId, event);
    runTools(mine, current, handledTools);
    // The store changes only where messages are taken up; deltas come by the thousand.
    if (event.type === "RUN_STARTED" || event.type === "RUN_ERROR") changed();
    else redraw();
  });
  mine.on("notice", (frame) => {
    if (frame.type === "reset") current.reset(frame);
  });
  // The status line says that there is no agent.
  mine.on("error", (error) => isAbsent(error) || view.alert(sentence(error)));

  before?.disconnect();
  for (const message of waiting) if (message.state === "sending") transmit(message);
  mine.connect();
  redraw();
}

/**
 * How runs ended is told by events alone: of those that the snapshot replaced, the history knows.
 * It may be a moment behind, or away: without it the notes are missing, and nothing else.
 * @param {NoobleSession} mine @param {Conversation} current
 */
async function recall(mine, current) {
  const path = `/api/v1/sessions/${encodeURIComponent(mine.sessionId ?? "")}/messages?limit=200`;
  for (const pauseMs of RECALL_PAUSES_MS) {
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
    let more = true;
    try {
      /** @type {import("./conversation.js").Past[]} */
      let past = [];
      let response;
      /** @type {any} */
      let page;
      do {
        const before = page ? `&cursor=${encodeURIComponent(page.next_cursor)}` : "";
        response = await fetch(path + before);
        page = response.ok ? await response.json() : undefined;
        past = [...(page?.messages ?? []), ...past];
      } while (page?.next_cursor && current.beginsBefore(past));
      if (current !== conversation) return;
      more = page ? current.recall(past, page.next_cursor != null) : response.status >= 500;
    } catch {
      // The connection is lost: it may be back for the next look.
    }
    redraw();
    if (!more) return;
  }
}

/** @param {import("./conversation.js").Waiting} message */
function transmit(message) {
  const current = conversation;
  const { id, text, whenBusy } = message;
  session
    .send(text, { id, whenBusy, tools: TOOLS })
    .then((ack) => current.taken(id, ack))
    .catch((error) => current.refused(id, sentence(error), error.retryable || error.code === "closed"))
    .finally(() => {
      if (current !== conversation) return;
      save();
      redraw();
    });
}

/** @param {string} text @param {string} [id] */
function submit(text, id = newId()) {
  const maxBytes = maxFrameBytes - ENVELOPE_BYTES;
  if (new TextEncoder().encode(JSON.stringify(text)).length > maxBytes) {
    return view.alert(`This message is too long: at most ${Math.floor(maxBytes / 1024)} KB.`);
  }
  view.alert("");
  if (session.status === "closed") revive();
  const whenBusy = conversation.questions.length || conversation.pendingTools.length ? "interrupt" : undefined;
  /** @type {import("./conversation.js").Waiting} */
  const message = { id, text, whenBusy, state: "sending" };
  conversation.add(message);
  transmit(message);
  save();
  view.follow();
  redraw();
  input.focus(); // the button that was pressed may be gone now
  return true;
}

/** @param {import("./conversation.js").Waiting} message */
function retry(message) {
  conversation.discard(message);
  submit(message.text, message.repeatable ? message.id : undefined);
}

/** @param {import("./conversation.js").Waiting} message */
function discard(message) {
  conversation.discard(message);
  redraw();
  input.focus();
}

/** A closed session again; one that is gone cannot come back, so a new one. */
function revive() {
  if (closedPolicy === "with a new session") beginAnew(conversation.waiting);
  else begin(session.sessionId, conversation.waiting);
}

/** A new session, and the old one's address gone. @param {import("./conversation.js").Waiting[]} [waiting] */
function beginAnew(waiting) {
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  begin(undefined, waiting);
}

/** @param {import("./nooble.js").AnswerEntry[]} entries @param {string} said */
function answer(entries, said) {
  const current = conversation;
  session
    .answer(entries)
    .then((ack) => {
      current.questions = [];
      current.taken("", ack);
      if (entries.some(({ status }) => status === "resolved")) current.note("answer", `You answered: ${said}`);
      else current.note("stopped", "You dismissed the question");
    })
    .catch((error) => {
      view.reopenQuestions();
      view.alert(sentence(error));
    })
    .finally(redraw);
}

function stop() {
  const current = conversation;
  const runId = current.openRun;
  if (!runId) return;
  const before = current.runs.get(runId) ?? "running";
  current.runs.set(runId, "cancelling");
  redraw();
  session.cancel(runId).catch((error) => {
    if (current.runs.has(runId)) current.runs.set(runId, before);
    view.alert(sentence(error));
    redraw();
  });
}

/**
 * Runs the tools that the agent waits for, each once.
 * @param {NoobleSession} mine @param {Conversation} current @param {Set<string>} handled
 */
function runTools(mine, current, handled) {
  for (const id of current.pendingTools) {
    const call = current.transcript.calls.get(id);
    if (!call || handled.has(id)) continue;
    handled.add(id);
    const { content, error } = runTool(call.function.name);
    mine.toolResult(id, content, error).then((ack) => {
      current.pendingTools = current.pendingTools.filter((pending) => pending !== id);
      current.taken(id, ack);
      redraw();
    }, (problem) => {
      // Another tab was faster, or nobody waits for it any more.
      const settled = ["id_conflict", "interrupt_expired", "session_ended", "closed"];
      if (!settled.includes(problem.code)) view.alert(sentence(problem));
    });
  }
}

/** @param {import("./nooble.js").Status} status @param {Record<string, any>} detail */
function showStatus(status, detail) {
  clearInterval(countdown);
  closedPolicy = detail.policy ?? "";
  const line = byId("status");
  const again = status === "connecting" && line.dataset.status === "waiting";
  line.dataset.status = status;
  const reconnect = byId("reconnect");
  reconnect.hidden = status !== "waiting" && !(status === "closed" && detail.policy !== "with a new session");
  setText(reconnect, status === "closed" ? "Try again" : isAbsent(detail.error) ? "Try now" : "Reconnect now");
  setText(byId("countdown"), "");
  // Why it connects again holds still, and is not read aloud anew each time.
  if (!again) setText(byId("status-text"), statusText(status, detail));
  // The status line says why.
  if (status === "open" || status === "closed") view.alert("");
  if (status === "waiting" && !isAbsent(detail.error)) countDown(Date.now() + detail.afterMs);
  if (status === "closed" && conversation.runs.size) {
    view.alert("The connection was closed before the answer was complete.");
  }
}

/** @param {string} status @param {Record<string, any>} detail */
function statusText(status, { code, reason, policy, error }) {
  if (status === "connecting") return "Connecting";
  if (status === "open") return "Connected";
  if (isAbsent(error)) return `There is no agent “${agent}” yet. This page waits for it.`;
  if (status === "waiting") return "Reconnecting";
  if (policy === "with a new session") {
    const what = code === 4410 ? "This chat has ended." : "This chat no longer exists.";
    return `${what} Your next message starts a new one.`;
  }
  return `Closed: ${error?.message || reason || CLOSED[code] || `code ${code}`}`;
}

/** No worker has ever served this agent. @param {import("./nooble.js").NoobleError} [error] */
function isAbsent(error) {
  return error?.code === "agent_not_found";
}

/** @param {number} at */
function countDown(at) {
  const show = () => {
    const seconds = Math.ceil((at - Date.now()) / 1000);
    setText(byId("countdown"), seconds > 0 ? `in ${seconds} s` : "");
  };
  show();
  countdown = setInterval(show, 500);
}

/** @param {string} name */
function showAgent(name) {
  view.agent = name;
  document.title = `${name} · chat`;
  setText(byId("agent"), name);
  setText(byId("welcome-agent"), name);
}

/** The link to this chat, which a new one has when it is opened. */
function showLink() {
  const link = /** @type {HTMLAnchorElement} */ (byId("link"));
  link.hidden = !session.sessionId;
  if (session.sessionId) link.href = `${location.pathname}${location.search}#session=${session.sessionId}`;
}

async function copyLink() {
  const link = /** @type {HTMLAnchorElement} */ (byId("link"));
  try {
    await navigator.clipboard.writeText(link.href);
    setText(link, "Link copied");
  } catch {
    history.replaceState(null, "", link.href); // no clipboard here: the address bar has it
    setText(link, "Link is in the address bar");
  }
  setTimeout(() => setText(link, "Copy link"), 2000);
}

/** @param {any} error */
function sentence(error) {
  const text = String(error.message || error.code);
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function redraw() {
  view.schedule(() => conversation);
}

function save() {
  const waiting = conversation.waiting.filter(({ state }) => state !== "failed");
  try {
    sessionStorage.setItem(STORAGE_KEY, JSON.stringify({ agent, sessionId: session.sessionId, waiting }));
  } catch {
    // Storage is full or forbidden: a reload then starts a new chat.
  }
}

/** @returns {{sessionId?: string, waiting?: import("./conversation.js").Waiting[]}} */
function saved() {
  try {
    const stored = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "{}");
    if (stored.agent !== agent) return {};
    for (const message of stored.waiting ?? []) message.state = "sending";
    return stored;
  } catch {
    return {};
  }
}

function linked() {
  return new URLSearchParams(location.hash.slice(1)).get("session") ?? undefined;
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, 220)}px`;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!input.value.trim() || !submit(input.value)) return;
  input.value = "";
  grow();
});
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  /** @type {HTMLFormElement} */ (byId("composer")).requestSubmit();
});
input.addEventListener("input", grow);
byId("stop").addEventListener("click", stop);
byId("new").addEventListener("click", () => {
  view.alert("");
  beginAnew();
  input.focus();
});
byId("reconnect").addEventListener("click", () => {
  if (session.status === "closed") revive();
  else session.connect();
  input.focus();
});
byId("alert-close").addEventListener("click", () => {
  view.alert("");
  input.focus();
});
byId("link").addEventListener("click", (event) => {
  event.preventDefault();
  void copyLink();
});
addEventListener("online", () => session.connect());
addEventListener("hashchange", () => {
  const id = linked();
  if (id && id !== session.sessionId) begin(id);
});
if (agent === "demo") {
  byId("suggestions").append(...SUGGESTIONS.map((text) => button(text, "", () => submit(text))));
}

const stored = saved();
const link = linked();
begin(link ?? stored.sessionId, !link || link === stored.sessionId ? stored.waiting : []);
