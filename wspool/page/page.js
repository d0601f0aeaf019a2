// The page of one pool, or of a group of them, drawn from each picture that the server sends.
// What others wrote, such as a close reason, becomes text: there are DOM nodes here, and no HTML.

import { last, remember, samples, startCharts } from "./charts.js";
import { diagram, draw } from "./diagram.js";

const RECENT = 5; // seconds that the means in the figures and the diagram are of
const PATIENCE = 1.5; // seconds for a stream that has ended to be taken up again
const LINES = 100; // events of either sort that are kept

const $ = (id) => document.getElementById(id);
const pool = new URLSearchParams(location.search).get("pool");
const number = new Intl.NumberFormat("en");

let machine; // {states, transitions, pools, settings}: the server's table, the only one there is
let picture; // the last one
let filter = "all";
let order = { column: 0, isDown: false };
let orderOfGone = { column: 2, isDown: false }; // the newest first
let chosen; // the connection whose details are open: its id, and its pool's name
let counters; // the text nodes of each state's count and mean in the diagram
let drawLines; // draws the charts up to a time

// Small things.

function url(path, parameters = {}) {
  const query = new URLSearchParams({ ...(pool !== null && { pool }), ...parameters });
  return query.size ? `${path}?${query}` : path;
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Write only what has changed: a selection, and what a screen reader says, stay as they are. */
function put(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

function seconds(value) {
  if (value == null) return "–";
  if (value < 1) return `${(value * 1000).toFixed(value > 0 && value < 0.01 ? 1 : 0)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} m ${String(Math.floor(value % 60)).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} m`;
}

function clock(at, digits = 0) {
  const time = new Date(at * 1000);
  const fraction = String(time.getMilliseconds()).padStart(3, "0").slice(0, digits);
  return time.toLocaleTimeString("en-GB") + (digits ? `.${fraction}` : "");
}

/** Say which task it is and where it is, with the file's last folder for its whole path. */
function whoAndWhere({ task, at, borrowed_at: borrowedAt }) {
  const place = (at ?? borrowedAt).replace(/^.*[\\/](?=[^\\/]+[\\/][^\\/]+$)/, "");
  return `${task ?? "no task"} · ${place}`;
}

function total(counts) {
  return machine.states.reduce((sum, state) => sum + counts[state], 0);
}

/** Return the mean of a state, or of those who wait, over the last seconds. */
function mean(name) {
  const recent = last(RECENT).length ? last(RECENT) : samples.slice(-1);
  return recent.reduce((sum, { means }) => sum + means[name], 0) / Math.max(1, recent.length);
}

function decimal(value) {
  return value >= 10 || value === 0 ? number.format(Math.round(value)) : value.toFixed(value < 0.1 ? 2 : 1);
}

// Over time.

function startTimeline() {
  const svgs = { states: $("chart-states"), waiting: $("chart-waiting"), failed: $("chart-failed") };
  drawLines = startCharts(svgs, machine.states);
  for (const state of machine.states) $("legend").append(make("li", { "data-state": state }, state));
  for (const [kind, text] of [["waiting", "waiting"], ["longest", "longest wait"], ["refused", "refused"], ["lost", "lost"]]) {
    $("legend").append(make("li", { "data-kind": kind }, text));
  }
}

function drawTimeline() {
  const { span, tops } = drawLines(picture.at);
  put($("peak"), number.format(tops.states));
  put($("peak-waiting"), `${number.format(tops.waiting)} waiting`);
  put($("peak-longest"), `longest wait ${seconds(tops.longest)}`);
  put($("peak-failed"), `${number.format(tops.failed)} refused or lost`);
  put($("since"), `${seconds(Math.round(span)).replace(".0", "")} ago`);
}

// The connections.

const COLUMNS = [
  // title, what it is sorted by, what is shown, class
  ["#", (c) => c.id, called, "id"],
  ["State", (c) => machine.states.indexOf(stateOf(c)), stateOf, "state"],
  ["For", (c) => c.seconds_in_state, (c) => seconds(c.seconds_in_state), "number"],
  ["Age", (c) => c.age, (c) => seconds(c.age), "number spare"],
  ["Loans", (c) => c.uses, (c) => number.format(c.uses), "number spare"],
  ["Sent", (c) => c.sent_messages, (c) => number.format(c.sent_messages), "number spare"],
  ["Received", (c) => c.received_messages, (c) => number.format(c.received_messages), "number spare"],
  ["Drained", (c) => c.drained_messages, (c) => number.format(c.drained_messages), "number spare"],
  ["Ping", (c) => c.rtt ?? -1, (c) => seconds(c.rtt), "number spare"],
  ["Borrower, or reason", told, told, "told"],
];
const rows = new Map(); // by pool and id

/** Name a connection; in a group with the number at the end of its pool's name, or all of it. */
function called({ id, pool: name }) {
  if (picture.members === null) return `#${id}`;
  const prefix = `${picture.name}-`;
  return `${name.startsWith(prefix) ? name.slice(prefix.length) : name}#${id}`;
}

/** Return the state that it has, or, if it is gone, the one that it has left. */
function stateOf(connection) {
  return filter === "gone" ? connection.was : connection.state;
}

function told(connection) {
  const { borrower, streams, close_code, close_reason, why, state } = connection;
  if (borrower) return whoAndWhere(borrower);
  if (streams.length) return `${streams.length}/${connection.max_streams} streams`;
  if (close_code !== null) return [why, close_code, close_reason].filter(Boolean).join(" · ");
  return state === "busy" ? why : ""; // a check or a keepalive of the pool's own
}

function startTable() {
  const titles = COLUMNS.map(([title, , , kind], column) => {
    const button = make("button", { type: "button" }, title);
    button.onclick = () => {
      const { column: before, isDown } = filter === "gone" ? orderOfGone : order;
      const chosen = { column, isDown: before === column && !isDown };
      if (filter === "gone") orderOfGone = chosen;
      else order = chosen;
      drawConnections();
    };
    return make("th", { class: kind, scope: "col" }, button);
  });
  document.querySelector("#connections thead tr").replaceChildren(...titles);
  const filters = ["all", ...machine.states, "gone"].map((name) => {
    const button = make("button", { type: "button", "data-state": name }, name, " ", make("b"));
    button.onclick = () => {
      filter = name;
      drawConnections();
    };
    return button;
  });
  $("filters").replaceChildren(...filters);
}

function drawConnections() {
  const { connections, gone, counts } = picture;
  const sorted = filter === "gone" ? orderOfGone : order;
  for (const button of $("filters").children) {
    const name = button.dataset.state;
    put(button.lastChild, number.format({ all: total(counts), gone: gone.length, ...counts }[name]));
    button.setAttribute("aria-pressed", name === filter);
  }
  document.querySelectorAll("#connections th").forEach((title, column) => {
    const direction = sorted.isDown ? "descending" : "ascending";
    title.setAttribute("aria-sort", column === sorted.column ? direction : "none");
    if (column === 1) put(title.firstChild, filter === "gone" ? "Left state" : "State");
  });
  const value = COLUMNS[sorted.column][1];
  const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
  const list = filter === "gone" ? [...gone] : connections;
  const shown = list.filter((c) => list !== connections || filter === "all" || c.state === filter);
  shown.sort((a, b) => (sorted.isDown ? compare(b, a) : compare(a, b)) || a.id - b.id);
  const body = document.querySelector("#connections tbody");
  const focused = document.activeElement;
  shown.forEach((connection, index) => {
    const row = rowOf(connection);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  while (body.children.length > shown.length) {
    rows.delete(body.lastChild.dataset.of);
    body.lastChild.remove();
  }
  if (focused !== document.activeElement && focused.isConnected) focused.focus();
  $("none").hidden = shown.length > 0;
  $("limited").hidden = connections.length === total(counts);
}

function rowOf(connection) {
  const { id, pool: of, is_overdue: isOverdue } = connection;
  const key = `${of} ${id}`;
  let row = rows.get(key);
  if (row === undefined) {
    const cells = COLUMNS.map(([, , , kind]) => make("td", { class: kind }));
    row = make("tr", { "data-id": id, "data-of": key }, ...cells);
    const name = called(connection);
    row.firstChild.append(make("button", { type: "button", "aria-label": `Details of ${name.replace(/^#/, "")}` }, name));
    row.onclick = () => showDetails({ id, pool: of });
    rows.set(key, row);
  }
  row.dataset.state = stateOf(connection);
  row.classList.toggle("overdue", isOverdue);
  COLUMNS.forEach(([, , text], column) => column && put(row.children[column], text(connection)));
  return row;
}

// One connection.

async function showDetails(connection) {
  chosen = connection;
  if ((await drawDetails()) && !$("details").open) $("details").showModal();
}

async function drawDetails() {
  const answer = await fetch(url("connection", chosen)).catch(() => null);
  const connection = answer?.ok ? await answer.json() : null;
  if (connection === null || connection.id !== chosen?.id || connection.pool !== chosen.pool) return false;
  const { id, pool: of, max_streams: maxStreams, state, was, history, borrower, streams, is_overdue: isOverdue, ...facts } = connection;
  const { task, borrowed_at: borrowedAt, at: nowAt } = borrower ?? {};
  for (const name of ["seconds_in_state", "age", "idle_seconds", "rtt"]) {
    facts[name] = facts[name] && seconds(facts[name]);
  }
  $("details").dataset.state = state;
  put($("details-title"), `${called(connection)} ${state}${isOverdue ? " · overdue" : ""}`);
  for (const { slot, state: streamState, seconds_in_state: since, borrower: holder } of streams) {
    facts[`stream_${slot}`] = `${streamState} ${seconds(since)}${holder ? ` · ${whoAndWhere(holder)}` : ""}`;
  }
  drawList($("facts"), { task, borrowed_at: borrowedAt, now_at: nowAt, ...facts });
  const lines = history.map(({ trigger, source, dest, at, why }) => {
    const move = make("b", { "data-state": dest }, `${source} → ${dest}`);
    return make("li", {}, make("time", {}, clock(at, 3)), move, ` ${trigger}, ${why}`);
  });
  $("history").replaceChildren(...lines);
  return true;
}

function inWords(name) {
  return name.replaceAll("_", " ").replace("seconds", "time");
}

function drawList(list, facts, title = inWords) {
  const given = Object.entries(facts).filter(([, fact]) => fact != null && fact !== "");
  const wanted = given.flatMap(([name, fact]) => [title(name), fact]);
  while (list.children.length > wanted.length) list.lastChild.remove();
  wanted.forEach((text, index) => {
    put(list.children[index] ?? list.appendChild(make(index % 2 ? "dd" : "dt")), text);
  });
}

// The members of a group.

function drawMembers() {
  const { members, at } = picture;
  $("group").hidden = members === null;
  if (members === null) return;
  const body = document.querySelector("#members tbody");
  members.rows.forEach((member, index) => {
    const row = body.children[index] ?? body.appendChild(memberRow());
    const { counts } = member;
    row.dataset.health = member.health;
    const link = row.firstChild.firstChild;
    put(link, member.key);
    link.href = `?pool=${encodeURIComponent(member.pool)}`;
    link.title = member.pool;
    const limit = member.learned_limit === null ? "" : ` (admits ${number.format(member.learned_limit)})`;
    const texts = [
      member.health === "out" ? `out, probed in ${seconds(Math.max(0, member.out_until - at))}` : member.health,
      `${number.format(counts.idle + counts.busy + counts.draining)}${limit}`,
      number.format(counts.busy),
      number.format(member.waiters),
      number.format(member.borrows),
      number.format(member.losses),
      member.why,
    ];
    texts.forEach((text, column) => put(row.children[column + 1], text));
  });
  while (body.children.length > members.rows.length) body.lastChild.remove();
  const listed = members.rows.length;
  const all = members.in + members.out + members.removed;
  $("unlisted").hidden = listed === all;
  put($("unlisted"), `Of ${number.format(all)} members, ${listed} are listed: those that are out first, then those with the most connections. Out: ${number.format(members.out)}.`);
}

function memberRow() {
  const kinds = ["key", "health", "number", "number", "number", "number spare", "number spare", "told"];
  const row = make("tr", {}, ...kinds.map((kind) => make("td", { class: kind })));
  row.firstChild.append(make("a"));
  return row;
}

// Who waits, what happened, and what it comes to.

const heard = { loans: [], others: [] };

function hear({ at, events, skipped }) {
  const loans = ["ConnectionCheckedOut", "ConnectionCheckedIn"];
  for (const event of events) heard[loans.includes(event.kind) ? "loans" : "others"].push(event);
  if (skipped) heard.loans.push({ kind: `and ${number.format(skipped)} more`, at });
  for (const list of Object.values(heard)) list.splice(0, list.length - LINES);
}

function describe({ kind, at, pool, connection_id: id, ...details }) {
  const words = kind.replace(/^(Connection|Pool)(?=[A-Z])/, "").replace(/\B[A-Z]/g, " $&").toLowerCase();
  const text = Object.entries(details)
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => (name === "duration" || name === "age" ? seconds(value) : value));
  const subject = id === undefined ? "" : `${called({ id, pool })} `;
  return make("li", {}, make("time", {}, clock(at)), [`${subject}${words}`, ...text].join(" · "));
}

function drawEvents() {
  const kept = $("with-loans").checked ? [...heard.others, ...heard.loans] : [...heard.others];
  kept.sort((a, b) => b.at - a.at);
  $("events").replaceChildren(...kept.slice(0, LINES).map(describe));
}

function drawWaiting() {
  const { waiting, waiters } = picture;
  const longest = Math.max(...waiting.map((waiter) => waiter.seconds), 0);
  const share = (waited) => (longest ? waited / longest : 0);
  const width = 1000 / Math.max(20, waiting.length);
  const bars = waiting.map(({ seconds: waited }, index) => {
    const height = Math.max(2, 100 * share(waited));
    return draw("rect", { x: index * width, y: 100 - height, width: width * 0.8, height });
  });
  $("queue").replaceChildren(...bars);
  $("queue").toggleAttribute("hidden", !waiting.length);
  const lines = waiting.map(({ seconds: waited, wants_new: wantsNew, borrower }) => {
    const who = `${whoAndWhere(borrower)}${wantsNew ? " · wants a new one" : ""}`;
    return make("li", { title: borrower.borrowed_at }, make("time", {}, seconds(waited)), who);
  });
  const unseen = waiters - waiting.length;
  if (unseen > 0) lines.push(make("li", {}, `and ${number.format(unseen)} more`));
  $("waiting").replaceChildren(...lines);
}

function drawMinute() {
  const { minute, stats } = picture;
  put($("minute"), minute.seconds < 59 ? `The last ${Math.round(minute.seconds)} s` : "The last minute");
  const refusals = Object.values(stats.refusals).reduce((sum, count) => sum + count, 0);
  const acquires = stats.borrows + refusals;
  const dials = stats.dials - Object.values(stats.failures).reduce((sum, count) => sum + count, 0);
  const ever = {
    wait: acquires ? seconds(stats.wait_seconds / acquires) : "–",
    dial: dials > 0 ? seconds(stats.dial_seconds / dials) : "–",
  };
  const body = document.querySelector("#percentiles tbody");
  for (const name of ["wait", "use", "dial"]) {
    const { count, p50, p95, p99 } = minute[name];
    const texts = [name, seconds(p50), seconds(p95), seconds(p99), number.format(count), ever[name] ?? ""];
    const row = body.querySelector(`[data-name=${name}]`) ?? body.appendChild(
      make("tr", { "data-name": name }, make("th", { scope: "row" }), ...texts.slice(1).map(() => make("td"))),
    );
    texts.forEach((text, column) => put(row.children[column], text));
  }
  const reasons = (counts) => Object.entries(counts).map((pair) => pair.join(" ")).join(", ") || "none";
  drawList($("reasons"), { refused: reasons(minute.refused), lost: reasons(minute.lost) });
}

function drawSettings() {
  const settings = { ...machine.settings, max_connections: picture.max_connections };
  for (const [name, value] of Object.entries(settings)) settings[name] = value === null ? "none" : String(value);
  drawList($("settings"), settings, (name) => name);
}

function drawStats() {
  const facts = {};
  for (const [name, value] of Object.entries(picture.stats)) {
    if (name.endsWith("_seconds")) facts[name] = seconds(value);
    else if (typeof value === "number") facts[name] = number.format(value);
    else facts[name] = Object.entries(value).map((pair) => pair.join(" ")).join(", ") || "none";
  }
  drawList($("stats"), facts);
}

function drawFigures() {
  const { counts, minute, connections } = picture;
  const learned = picture.learned_limit;
  const admitted = learned === null ? "" : ` (the server admits ${number.format(learned)})`;
  put($("places"), `${number.format(picture.places)} / ${number.format(picture.max_connections)}${admitted}`);
  const recent = last(RECENT);
  const loans = recent.reduce((sum, sample) => sum + sample.loans, 0) / recent.length;
  put($("in-use"), decimal(mean("busy")));
  put($("loans-per-second"), recent.length ? decimal(loans) : "–");
  put($("waiters"), number.format(picture.waiters));
  put($("p95-wait"), seconds(minute.wait.p95));
  for (const name of ["refused", "lost"]) {
    const count = Object.values(minute[name]).reduce((sum, value) => sum + value, 0);
    put($(name), number.format(count));
    $(name).classList.toggle("alarm", count > 0);
  }
  const overdue = connections.filter((connection) => connection.is_overdue).length;
  put($("overdue"), overdue);
  $("overdue").classList.toggle("alarm", overdue > 0);
  for (const state of machine.states) {
    put(counters[state].count, number.format(counts[state]));
    put(counters[state].mean, `mean ${decimal(mean(state))}`);
  }
}

// The stream.

function say(status, text) {
  $("status").dataset.status = status;
  put($("status"), text);
}

function drawAll() {
  const isPaused = $("pause").getAttribute("aria-pressed") === "true";
  if (picture === undefined || document.hidden || isPaused) return;
  document.title = `${picture.name} · wspool`;
  put($("name"), picture.name);
  put($("uri"), picture.uri);
  const { is_closed: isClosed, is_started: isStarted } = picture;
  const what = picture.members === null ? "pool" : "group";
  say(isClosed ? "closed" : "live", isClosed ? `${what} closed` : isStarted ? "live" : "not started");
  $("failure").hidden = picture.failure === null;
  put($("failure"), picture.failure === null ? "" : `The last dial has failed: ${picture.failure}`);
  const parts = [drawFigures, drawTimeline, drawMinute, drawWaiting, drawMembers, drawConnections, drawEvents, drawStats];
  for (const part of [...parts, drawSettings]) part();
  if ($("details").open) drawDetails();
}

function start(table) {
  const isFirst = machine === undefined;
  machine = table;
  remember(table.past);
  if (!isFirst) return; // the stream was lost and is back
  $("dump").href = url("dump");
  startTimeline();
  startTable();
  startDiagram();
  const here = pool ?? machine.pools[0];
  // A member of a group, which is not listed here, stands behind the others.
  const links = [...new Set([...machine.pools, here])].map((name) => {
    const href = `?pool=${encodeURIComponent(name)}`;
    return make("a", name === here ? { href, "aria-current": "page" } : { href }, name);
  });
  if (links.length > 1) $("pools").replaceChildren(...links);
}

function startDiagram() {
  const narrow = matchMedia("(max-width: 700px)");
  const redraw = () => {
    const { svg, texts } = diagram(machine, narrow.matches);
    counters = texts;
    $("diagram").replaceChildren(svg);
  };
  narrow.onchange = () => {
    redraw();
    drawAll();
  };
  redraw();
}

const stream = new EventSource(url("events"));
stream.addEventListener("machine", (event) => start(JSON.parse(event.data)));
stream.onmessage = (event) => {
  picture = JSON.parse(event.data);
  clearTimeout(lost);
  lost = undefined;
  remember(picture.slots);
  hear(picture);
  drawAll();
};
let lost; // the timer of a stream that has ended
stream.onerror = async () => {
  if (stream.readyState !== EventSource.CLOSED) {
    // Some end as planned, to be taken up again at once.
    lost ??= setTimeout(() => say("lost", "connection lost, trying again …"), PATIENCE * 1000);
    return;
  }
  const { status } = await fetch(url("events"), { method: "HEAD" }).catch(() => ({}));
  say("lost", status === 503 ? "too many pages are open: close one, then reload" : "refused: reload the page");
};

$("pause").onclick = ({ target }) => {
  const isPaused = target.getAttribute("aria-pressed") !== "true";
  target.setAttribute("aria-pressed", isPaused);
  put(target, isPaused ? "Resume" : "Pause");
  drawAll();
};
$("with-loans").onchange = drawEvents;
$("details").onclose = () => (chosen = undefined);
document.addEventListener("visibilitychange", drawAll);
