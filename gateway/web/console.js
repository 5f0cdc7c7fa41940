// @ts-check
/** The console: asks the gateway every two seconds how the fleet does, and shows that. Read-only. */

import { byId, create, setText } from "./dom.js";
import { Plot } from "./plot.js";

const ASK_EVERY_MS = 2000;
const ANSWER_WITHIN_MS = 5000;
const SHOWN = 150;
const MINUTE_S = 60;
const TOKENS_OVER_S = 10;

/**
 * @typedef {{count: number, p50: number | null, p95: number | null, p99: number | null, bound: number}} Latency
 * @typedef {{agent: string, workers: number, busy: number, free: number, waiting: number, breaker: number, failures: number}} Agent
 * @typedef {{node: string, url: string, version: string, up_s: number, draining: boolean, checks: Record<string, string>, cpu: number, memory_bytes: number, connections: number, active: number}} NodeRow
 * @typedef {{asked: string, silent_s: number, connections: number, sockets: number, active: number,
 *   capacity: number, messages_per_minute: number, tokens_per_second: number,
 *   failures_per_minute: number, totals: Record<string, number>, slot_s: number, end_s: number,
 *   plots: Record<string, number[]>, latencies: Record<string, Latency>,
 *   sessions: Record<string, number>, agents: Agent[],
 *   queues: {tenant: string, queue: string, depth?: number, lag_s?: number}[],
 *   services: Record<string, {breaker?: number, failures?: number}>, nodes: NodeRow[]}} State
 *   As `gateway/telemetry/overview.py` says it.
 */

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
/** @param {number} number */
const shown = (number) => (Math.abs(number) < 100 ? short : whole).format(number);

/** @param {number | null} seconds @param {number} [bound] */
function duration(seconds, bound = Infinity) {
  if (seconds === null) return "–";
  const sign = seconds >= bound ? "> " : "";
  if (seconds < 1) return `${sign}${short.format(seconds * 1000)} ms`;
  if (seconds < 120) return `${sign}${short.format(seconds)} s`;
  if (seconds < 7200) return `${sign}${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${sign}${Math.floor(seconds / 3600)} h`;
  return `${sign}${Math.floor(seconds / 86_400)} d`;
}

/** The sum of each number and those before it, `count` in all. @param {number[]} numbers @param {number} count */
function sums(numbers, count) {
  let sum = 0;
  return numbers.map((number, index) => {
    sum += number - (index >= count ? (numbers[index - count] ?? 0) : 0);
    return sum;
  });
}

// --- numbers with a plot ---------------------------------------------------------------------------

class Card {
  /** @param {string} id @param {string} label */
  constructor(id, label) {
    this.element = create("article", "card");
    this.element.id = id;
    this.value = create("p", "value", "–");
    this.note = create("p", "note");
    this.most = create("span", "");
    this.plot = new Plot(`${label}, the last five minutes`, () => this.annotate());
    this.said = "";
    this.endS = 0;
    this.slotS = 1;
    const plot = create("div", "plot");
    const scale = create("p", "scale");
    scale.append(create("span", "", "−5 min"), this.most, create("span", "", "now"));
    plot.append(this.plot.element, scale);
    this.element.append(create("h2", "", label), this.value, this.note, plot);
  }

  /** @param {State} state @param {number} value @param {string} note @param {number[]} numbers */
  show(state, value, note, numbers) {
    setText(this.value, shown(value));
    this.said = note;
    this.endS = state.end_s;
    this.slotS = state.slot_s;
    const latest = numbers.slice(-SHOWN);
    this.plot.show(latest);
    setText(this.most, `most ${shown(Math.max(...latest))}`);
    this.annotate();
  }

  annotate() {
    const { index, numbers } = this.plot;
    const number = index === null ? undefined : numbers[index];
    if (index === null || number === undefined) {
      setText(this.note, this.said || "\u00a0");
      return;
    }
    const at = new Date((this.endS - (numbers.length - 1 - index) * this.slotS) * 1000);
    setText(this.note, `${shown(number)} at ${at.toLocaleTimeString()}`);
  }
}

const cards = {
  connections: new Card("connections", "Live connections"),
  sessions: new Card("sessions", "Sessions"),
  messages: new Card("messages", "Messages / min"),
  tokens: new Card("tokens", "Tokens / s"),
  failures: new Card("failures", "Failures / min"),
};
byId("cards").append(...Object.values(cards).map((card) => card.element));

/** @param {State} state */
function showCards(state) {
  const { plots, totals } = state;
  const plot = (/** @type {string} */ name) => plots[name] ?? [];
  const total = (/** @type {string} */ name) => `${whole.format(totals[name] ?? 0)} in 5 min`;
  const minute = MINUTE_S / state.slot_s;
  const pending = Math.max(0, state.sockets - state.connections);
  cards.connections.show(
    state,
    state.connections,
    pending ? `and ${whole.format(pending)} not open yet` : "",
    plot("connections"),
  );
  cards.sessions.show(
    state,
    state.active,
    state.capacity ? `of ${whole.format(state.capacity)}` : "",
    plot("sessions"),
  );
  cards.messages.show(
    state,
    state.messages_per_minute,
    total("messages"),
    sums(plot("messages"), minute),
  );
  cards.tokens.show(
    state,
    state.tokens_per_second,
    total("tokens"),
    sums(plot("tokens"), TOKENS_OVER_S / state.slot_s).map((sum) => sum / TOKENS_OVER_S),
  );
  cards.failures.show(
    state,
    state.failures_per_minute,
    total("failures"),
    sums(plot("failures"), minute),
  );
  cards.failures.element.dataset.tone = state.failures_per_minute ? "bad" : "";
}

// --- tables ----------------------------------------------------------------------------------------

/** @param {string} id @param {(string | Node)[][]} rows @param {string} none Said when there are no rows. */
function fill(id, rows, none) {
  const table = byId(id);
  const heads = [...table.querySelectorAll("thead th")];
  const body = table.querySelector("tbody");
  const made = rows.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((cell, index) => {
      const element = create(index ? "td" : "th", heads[index]?.className ?? "");
      element.append(cell);
      if (!index) {
        element.setAttribute("scope", "row");
        element.title = element.textContent ?? "";
      }
      row.append(element);
    });
    return row;
  });
  if (!made.length) {
    const cell = /** @type {HTMLTableCellElement} */ (create("td", "none", none));
    cell.colSpan = heads.length;
    const row = document.createElement("tr");
    row.append(cell);
    made.push(row);
  }
  body?.replaceChildren(...made);
}

/** @param {"good" | "wait" | "bad"} state @param {string} text */
function mark(state, text) {
  const element = create("span", "state", text);
  element.dataset.state = state;
  return element;
}

/**
 * A database that is read and cannot be written is ill, though its breaker is closed.
 * @param {number} breaker
 * @param {number} failures in a row; from two on it is ill, as in overview.py
 */
function serviceMark(breaker, failures) {
  return !breaker && failures >= 2 ? mark("bad", "ill") : breakerMark(breaker);
}

/** @param {number} breaker */
function breakerMark(breaker) {
  if (breaker >= 2) return mark("bad", "left alone");
  return breaker ? mark("wait", "being tried") : mark("good", "well");
}

/** @param {Agent} agent */
function agentMark(agent) {
  return agent.workers ? breakerMark(agent.breaker) : mark("bad", "no worker");
}

/** @param {number} part @param {number} all */
function share(part, all) {
  const span = create("span", "");
  const bar = document.createElement("progress");
  bar.max = Math.max(1, all);
  bar.value = part;
  span.append(bar, `${whole.format(part)} / ${whole.format(all)}`);
  return span;
}

/** @param {NodeRow} node */
function nodeMark(node) {
  if (node.draining) return mark("wait", "draining");
  const ill = Object.keys(node.checks).filter((name) => node.checks[name] !== "ok");
  return ill.length ? mark("bad", `no ${ill.join(", no ")}`) : mark("good", "ready");
}

/** @type {[string, string][]} */
const LATENCIES = [
  ["accepted", "Accepted"],
  ["first_event", "First event"],
  ["delivered", "Delivered"],
];

/** @param {State} state */
function showTables(state) {
  fill(
    "latencies",
    LATENCIES.map(([name, label]) => {
      const found = state.latencies[name];
      if (!found) return [label];
      const { p50, p95, p99, bound, count } = found;
      return [label, ...[p50, p95, p99].map((p) => duration(p, bound)), whole.format(count)];
    }),
    "",
  );
  fill(
    "services",
    Object.entries(state.services).map(([name, { breaker = 0, failures = 0 }]) => [
      name,
      serviceMark(breaker, failures),
      whole.format(failures),
    ]),
    "none",
  );
  fill(
    "agents",
    state.agents.map((agent) => [
      agent.agent,
      whole.format(agent.workers),
      share(agent.busy, agent.busy + agent.free),
      whole.format(agent.waiting),
      agentMark(agent),
    ]),
    "No agent has been seen yet.",
  );
  fill(
    "queues",
    state.queues.map(({ queue, tenant, depth = 0, lag_s = 0 }) => [
      queue,
      tenant,
      whole.format(depth),
      duration(lag_s),
    ]),
    "Nothing waits.",
  );
  const tenants = Object.entries(state.sessions);
  fill(
    "tenants",
    tenants.map(([tenant, count]) => [tenant, share(count, state.active)]),
    "No session is active.",
  );
  fill(
    "nodes",
    state.nodes.map((node) => [
      node.node.slice(-8) + (node.node === state.asked ? " (this)" : ""),
      nodeMark(node),
      node.url.replace(/^https?:\/\//, ""),
      whole.format(node.connections),
      whole.format(node.active),
      `${whole.format(node.cpu * 100)} %`,
      `${whole.format(node.memory_bytes / 1024 / 1024)} MiB`,
      duration(node.up_s),
      node.version,
    ]),
    "",
  );
}

// --- asking ----------------------------------------------------------------------------------------

const main = /** @type {HTMLElement} */ (document.querySelector("main"));
let heardAt = performance.now();
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/** @param {string} text Empty: all is well. */
function warn(text) {
  const banner = byId("banner");
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
}

/** @param {string} status @param {string} text */
function tell(status, text) {
  const element = byId("status");
  element.dataset.status = status;
  setText(element, text);
}

/** @param {State} state */
function show(state) {
  const count = state.nodes.length;
  heardAt = performance.now();
  main.removeAttribute("aria-busy");
  main.removeAttribute("data-stale");
  showCards(state);
  showTables(state);
  const nodes = count === 1 ? "1 node" : `${count} nodes`;
  if (state.silent_s) {
    tell("wait", `${nodes}, as of ${duration(state.silent_s)} ago`);
    warn("Redis does not answer. This node is shown as it is, the others as they were before.");
  } else {
    tell("open", nodes);
    warn("");
  }
}

async function ask() {
  clearTimeout(timer);
  try {
    const response = await fetch("/console/state", {
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
    });
    if (!response.ok) throw new Error(`status ${response.status}`);
    show(await response.json());
  } catch {
    main.setAttribute("data-stale", "");
    tell("closed", `No answer for ${duration((performance.now() - heardAt) / 1000)}`);
    warn("The gateway does not answer. This is what it said before.");
  }
  if (!document.hidden) timer = setTimeout(ask, ASK_EVERY_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) void ask();
});
void ask();
