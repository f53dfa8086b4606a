// The tab "Server" of Locust's web UI, and the page /server/: what the server under load does, live.
// Locust draws the tab's head and leaves its body empty; this fills it while it is chosen, and asks for nothing otherwise.

import { Chart, clock, format, node } from "./charts.js";

const TITLE = "Server";
const INTERVAL_MS = 1000;
const WINDOWS = [[60, "1 min"], [300, "5 min"], [1800, "30 min"]];
const LEAST_S = 20; // shown, however short it has been
const STALE_S = 5;
const DATA = (number) => new URL(`../data/${number}`, import.meta.url);

const CHARTS = [
  {
    title: "Memory of the server", unit: "bytes",
    note: "Resident (RSS) counts shared pages whole, PSS its part of them. Commands are processes of local delivery.",
    series: [
      { key: "rss", label: "RSS" }, { key: "pss", label: "PSS" },
      { key: "commands_rss", label: "commands, RSS" }, { key: "commands_pss", label: "commands, PSS" },
    ],
  },
  {
    title: "Memory by agent", unit: "bytes", stacked: true, total: "in all",
    note: "What agents keep: the scheduler its envelopes (estimated), the queue messages ready for a first attempt, SMTP messages coming in.",
    series: [
      { key: "bytes_scheduler", label: "scheduler" }, { key: "bytes_queue", label: "queue" },
      { key: "bytes_smtp", label: "SMTP in" }, { key: "commands_pss", label: "local delivery", title: "PSS of its commands" },
    ],
  },
  {
    title: "Queue by state", unit: "count", stacked: true, total: "in all",
    note: "Envelopes: waiting for their next try, due, in flight, held at high water, paused.",
    series: [
      { key: "inflight", label: "in flight" }, { key: "scheduled", label: "scheduled" },
      { key: "hold", label: "hold" }, { key: "pending", label: "pending" }, { key: "suspended", label: "suspended" },
    ],
  },
  {
    title: "Envelopes resident by agent", unit: "count",
    note: "How many each agent has in memory. One envelope may be with several: the scheduler knows all.",
    series: [
      { key: "at_scheduler", label: "scheduler" }, { key: "at_mta", label: "relaying" },
      { key: "at_queue", label: "queue", title: "kept ready for a first attempt" },
      { key: "at_mda", label: "local delivery" }, { key: "at_bounce", label: "bounces" },
    ],
  },
  {
    title: "Mail per second", unit: "rate",
    note: "Messages accepted with 250; attempts that delivered, were deferred (4xx) or failed (5xx); reports made (bounces).",
    series: [
      { key: "accepted", label: "accepted" }, { key: "delivered", label: "delivered" },
      { key: "deferred", label: "deferred" }, { key: "failed", label: "failed" }, { key: "bounces", label: "bounces" },
    ],
  },
  {
    title: "Lateness of the load itself", unit: "seconds",
    note: "The worst of each second (with workers, of three). While it is not small, the numbers are not of the load that the scenario says.",
    series: [{ key: "lag", label: "schedule lag" }],
  },
];

const TILES = [
  ["pss", "bytes", "memory (PSS)"], ["at_scheduler", "count", "queued"], ["accepted", "rate", "accepted"],
  ["delivered", "rate", "delivered"], ["deferred", "rate", "deferred"], ["lag", "seconds", "load late by"],
];

// What Locust has asked so far; kept when the tab is left, so that coming back does not begin anew.
const known = { id: "", next: 0, columns: [], rows: [], latest: null };

function take(answer) {
  if (answer.id !== known.id && known.next) {
    // Another load has taken its place, and these are not all of its rows: ask for them next time.
    Object.assign(known, { id: "", next: 0, rows: [], latest: null });
    return;
  }
  const rows = [...known.rows, ...answer.rows].slice(-answer.kept);
  Object.assign(known, { id: answer.id, next: answer.next, columns: answer.columns, rows, latest: answer });
}

// The theme as Locust itself finds it.
function isDark() {
  const chosen = localStorage.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

// Return [state, words] for people. `trouble` is what is the matter with Locust, if something is.
export function standing(latest, trouble) {
  if (trouble) return ["away", `Locust does not answer (${trouble}); asking again.`];
  if (!latest || latest.state.name === "waiting") return ["waiting", "Waiting for the first numbers."];
  const { state, place, now, looked_at } = latest;
  if (now - looked_at > STALE_S)
    return ["away", `Locust has not looked at the server for ${duration(now - looked_at)}: it is too busy, or its log says why.`];
  if (state.name === "away")
    return ["away", `No numbers from the server since ${clock(state.since)}: ${state.words} Looking again every second.`];
  if (!latest.restarts) return ["ok", `Connected to ${place}.`];
  const times = latest.restarts === 1 ? "" : ` (restarts seen: ${latest.restarts})`;
  return ["ok", `Connected to ${place}. It was started again before ${clock(latest.restarted_at)}${times}; its counters began at zero.`];
}

class View {
  constructor() {
    this.window = 300;
    this.timer = null;
    this.request = null;
    this.trouble = "";
    this.element = node("section", { id: "server-tab", "aria-label": TITLE });
    this.status = node("p", { class: "status", role: "status" });
    this.uptime = node("span", { class: "uptime" });
    const choice = node("div", { class: "windows", role: "group", "aria-label": "Time shown" });
    for (const [seconds, label] of WINDOWS) {
      const button = node("button", { type: "button", "data-window": seconds }, label);
      button.addEventListener("click", () => { this.window = seconds; this.draw(); });
      choice.append(button);
    }
    this.buttons = [...choice.children];
    const head = node("header");
    head.append(this.status, this.uptime, choice);
    const tiles = node("dl", { class: "tiles" });
    this.tiles = TILES.map(([key, unit, label]) => {
      const tile = node("div");
      const value = node("dd", { "data-tile": key });
      tile.append(node("dt", {}, label), value);
      tiles.append(tile);
      return [value, key, unit];
    });
    const index = (key) => known.columns.indexOf(key);
    this.cursor = null;
    this.charts = CHARTS.map((each) => new Chart(each, index, (t) => this.point(t)));
    const grid = node("div", { class: "charts" });
    grid.append(...this.charts.map((each) => each.element));
    this.element.append(head, tiles, grid);
    this.onTheme = () => { this.element.dataset.theme = isDark() ? "dark" : "light"; };
    // Locust changes the theme at a click, after which it is known.
    this.onClick = () => setTimeout(this.onTheme);
    this.onResize = new ResizeObserver(() => this.draw());
    this.media = matchMedia("(prefers-color-scheme: dark)");
  }

  get isShown() { return this.timer !== null || this.request !== null; }

  show(host) {
    host.append(this.element);
    this.onTheme();
    this.media.addEventListener("change", this.onTheme);
    addEventListener("storage", this.onTheme);
    addEventListener("click", this.onClick);
    this.onResize.observe(this.element);
    this.draw();
    this.poll();
  }

  hide() {
    clearTimeout(this.timer);
    this.request?.abort();
    this.timer = this.request = null;
    this.media.removeEventListener("change", this.onTheme);
    removeEventListener("storage", this.onTheme);
    removeEventListener("click", this.onClick);
    this.onResize.disconnect();
    this.element.remove();
  }

  async poll() {
    this.timer = null;
    const request = (this.request = new AbortController());
    // A Locust that hangs is one that does not answer.
    const limit = setTimeout(() => request.abort(), 5 * INTERVAL_MS);
    try {
      const answer = await fetch(DATA(known.next), { signal: request.signal });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      take(await answer.json());
      this.trouble = "";
    } catch (error) {
      if (this.request === request) this.trouble = error.name === "AbortError" ? "no answer within 5 s" : String(error.message);
    } finally {
      clearTimeout(limit);
    }
    if (this.request !== request) return; // hidden meanwhile
    this.request = null;
    this.onTheme();
    this.draw();
    // A little after the full second, when there is a new row.
    this.timer = setTimeout(() => this.poll(), INTERVAL_MS - (Date.now() % INTERVAL_MS) + 120);
  }

  draw() {
    const [state, words] = standing(known.latest, this.trouble);
    this.element.dataset.state = state;
    if (this.status.textContent !== words) this.status.textContent = words; // or it would be read aloud each second
    const last = known.rows.at(-1);
    const started = known.latest?.started_at;
    this.up = state === "ok" && started ? `up ${duration(last[0] - started)}` : "";
    for (const button of this.buttons) button.setAttribute("aria-pressed", Number(button.dataset.window) === this.window);
    for (const [element, key, unit] of this.tiles) element.textContent = format(last?.[known.columns.indexOf(key)], unit);
    const to = last ? last[0] : Date.now() / 1000;
    const since = known.rows.length ? known.rows[0][0] : to;
    const from = to - Math.min(this.window, Math.max(to - since, LEAST_S));
    const rows = known.rows.filter((row) => row[0] >= from);
    for (const chart of this.charts) chart.draw(rows, from, to);
    this.point(this.cursor);
  }

  point(t) {
    this.cursor = t;
    for (const chart of this.charts) chart.point(t);
    this.uptime.textContent = t === null ? this.up : `at ${clock(t)}`;
  }
}

const view = new View();

// Put the view where its tab is chosen, and take it away when another one is.
function follow() {
  const tab = document.querySelector("[role=tab][aria-selected=true]");
  const host = tab?.textContent.trim() === TITLE ? (tab.closest(".MuiContainer-root") ?? document.querySelector("main")) : null;
  if (view.element.parentNode === host && view.element.isConnected === Boolean(host)) return;
  if (view.isShown) view.hide();
  if (host) view.show(host);
}

const page = document.getElementById("server-page");
if (page) view.show(page);
else {
  const root = document.getElementById("root");
  new MutationObserver(follow).observe(root, { childList: true, subtree: true, attributeFilter: ["aria-selected"] });
  follow();
}

// For tests, and for whoever is curious.
window.testbedServer = { view, known };
