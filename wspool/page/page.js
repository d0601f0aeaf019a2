// The page of one pool, drawn from each picture that the server sends.
// What others wrote, such as a close reason, becomes text: there are DOM nodes here, and no HTML.

import { diagram, draw } from "./diagram.js";

const WINDOW = [20, 5 * 60]; // seconds of the time line: at first, and at most
const GAP = 3; // seconds without a picture that the time line does not bridge
const LINES = 100; // events of either sort that are kept

const $ = (id) => document.getElementById(id);
const pool = new URLSearchParams(location.search).get("pool");
const number = new Intl.NumberFormat("en");

let machine; // {states, transitions, pools}: the server's table, the only one there is
let picture; // the last one
let filter = "all";
let order = { column: 0, isDown: false };
let chosen; // the id of the connection whose details are open
let counters; // the text node of each state's count in the diagram

// Small things.

function url(path, parameters = {}) {
  const query = new URLSearchParams(pool === null ? parameters : { pool, ...parameters });
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

/** Say who it is and where he is, with the file's last folder for its whole path. */
function whoAndWhere({ task, at, borrowed_at: borrowedAt }) {
  const place = (at ?? borrowedAt).replace(/^.*[\\/](?=[^\\/]+[\\/][^\\/]+$)/, "");
  return `${task ?? "no task"} · ${place}`;
}

function total(counts) {
  return machine.states.reduce((sum, state) => sum + counts[state], 0);
}

// The time line: stacked areas, from the pictures since the page was opened.

const samples = []; // {at, counts}
const areas = new Map();

function startTimeline() {
  for (const state of machine.states) {
    areas.set(state, draw("path", { "data-state": state, class: "area" }));
    $("legend").append(make("li", { "data-state": state }, state));
  }
  document.querySelector("#timeline svg").replaceChildren(...areas.values());
}

function drawTimeline() {
  const now = samples.at(-1).at;
  const span = Math.min(WINDOW[1], Math.max(WINDOW[0], now - samples[0].at));
  const peak = Math.max(4, ...samples.map(({ counts }) => total(counts)));
  const top = peak <= 10 ? peak + (peak % 2) : Math.ceil(peak / 10) * 10;
  const below = samples.map(() => 0);
  for (const state of machine.states) {
    let d = "";
    let [upper, lower] = [[], []];
    samples.forEach(({ at, counts }, index) => {
      const x = (1000 - ((now - at) / span) * 1000).toFixed(1);
      const y = (value) => (100 - (value / top) * 100).toFixed(2);
      lower.unshift(`${x},${y(below[index])}`);
      upper.push(`${x},${y((below[index] += counts[state]))}`);
      if (index + 1 === samples.length || samples[index + 1].at - at > GAP) {
        d += `M${upper.join("L")}L${lower.join("L")}Z`;
        [upper, lower] = [[], []];
      }
    });
    areas.get(state).setAttribute("d", d);
  }
  put($("peak"), top);
  put($("since"), `${seconds(Math.round(span)).replace(".0", "")} ago`);
}

// The connections.

const COLUMNS = [
  // title, what it is sorted by, what is shown, class
  ["#", (c) => c.id, (c) => c.id, "id"],
  ["State", (c) => machine.states.indexOf(c.state), (c) => c.state, "state"],
  ["For", (c) => c.seconds_in_state, (c) => seconds(c.seconds_in_state), "number"],
  ["Age", (c) => c.age, (c) => seconds(c.age), "number spare"],
  ["Loans", (c) => c.uses, (c) => number.format(c.uses), "number spare"],
  ["Sent", (c) => c.sent_messages, (c) => number.format(c.sent_messages), "number spare"],
  ["Received", (c) => c.received_messages, (c) => number.format(c.received_messages), "number spare"],
  ["Drained", (c) => c.drained_messages, (c) => number.format(c.drained_messages), "number spare"],
  ["Ping", (c) => c.rtt ?? -1, (c) => seconds(c.rtt), "number spare"],
  ["Borrower, or reason", told, told, "told"],
];
const rows = new Map(); // by id

function told(connection) {
  const { borrower, close_code, close_reason, why, state } = connection;
  if (borrower) return whoAndWhere(borrower);
  if (close_code !== null) return [why, close_code, close_reason].filter(Boolean).join(" · ");
  return state === "busy" ? why : ""; // a check or a keepalive of the pool's own
}

function startTable() {
  const titles = COLUMNS.map(([title, , , kind], column) => {
    const button = make("button", { type: "button" }, title);
    button.onclick = () => {
      order = { column, isDown: order.column === column && !order.isDown };
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
  for (const button of $("filters").children) {
    const name = button.dataset.state;
    put(button.lastChild, number.format({ all: total(counts), gone: gone.length, ...counts }[name]));
    button.setAttribute("aria-pressed", name === filter);
  }
  document.querySelectorAll("#connections th").forEach((title, column) => {
    const direction = order.isDown ? "descending" : "ascending";
    title.setAttribute("aria-sort", column === order.column ? direction : "none");
  });
  const value = COLUMNS[order.column][1];
  const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
  const list = filter === "gone" ? [...gone] : connections;
  const shown = list.filter((c) => list !== connections || filter === "all" || c.state === filter);
  shown.sort((a, b) => (order.isDown ? compare(b, a) : compare(a, b)) || a.id - b.id);
  const body = document.querySelector("#connections tbody");
  const focused = document.activeElement;
  shown.forEach((connection, index) => {
    const row = rowOf(connection);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  while (body.children.length > shown.length) {
    rows.delete(Number(body.lastChild.dataset.id));
    body.lastChild.remove();
  }
  if (focused !== document.activeElement && focused.isConnected) focused.focus();
  $("none").hidden = shown.length > 0;
  $("limited").hidden = connections.length === total(counts);
}

function rowOf(connection) {
  const { id, state, is_overdue: isOverdue } = connection;
  let row = rows.get(id);
  if (row === undefined) {
    row = make("tr", { "data-id": id }, ...COLUMNS.map(([, , , kind]) => make("td", { class: kind })));
    row.firstChild.append(make("button", { type: "button", "aria-label": `Details of ${id}` }, `#${id}`));
    row.onclick = () => showDetails(id);
    rows.set(id, row);
  }
  row.dataset.state = state;
  row.classList.toggle("overdue", isOverdue);
  COLUMNS.forEach(([, , text], column) => column && put(row.children[column], text(connection)));
  return row;
}

// One connection.

async function showDetails(id) {
  chosen = id;
  if ((await drawDetails()) && !$("details").open) $("details").showModal();
}

async function drawDetails() {
  const answer = await fetch(url("connection", { id: chosen })).catch(() => null);
  const connection = answer?.ok ? await answer.json() : null;
  if (connection?.id !== chosen) return false;
  const { id, state, history, borrower, is_overdue: isOverdue, ...facts } = connection;
  const { task, borrowed_at: borrowedAt, at: nowAt } = borrower ?? {};
  for (const name of ["seconds_in_state", "age", "idle_seconds", "rtt"]) {
    facts[name] = facts[name] && seconds(facts[name]);
  }
  $("details").dataset.state = state;
  put($("details-title"), `#${id} ${state}${isOverdue ? " · overdue" : ""}`);
  drawList($("facts"), { task, borrowed_at: borrowedAt, now_at: nowAt, ...facts });
  const lines = history.map(({ trigger, source, dest, at, why }) => {
    const move = make("b", { "data-state": dest }, `${source} → ${dest}`);
    return make("li", {}, make("time", {}, clock(at, 3)), move, ` ${trigger}, ${why}`);
  });
  $("history").replaceChildren(...lines);
  return true;
}

function drawList(list, facts) {
  const given = Object.entries(facts).filter(([, fact]) => fact != null && fact !== "");
  const wanted = given.flatMap(([name, fact]) => [name.replaceAll("_", " ").replace("seconds", "time"), fact]);
  while (list.children.length > wanted.length) list.lastChild.remove();
  wanted.forEach((text, index) => {
    put(list.children[index] ?? list.appendChild(make(index % 2 ? "dd" : "dt")), text);
  });
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
  const subject = id === undefined ? "" : `#${id} `;
  return make("li", {}, make("time", {}, clock(at)), [`${subject}${words}`, ...text].join(" · "));
}

function drawEvents() {
  const kept = $("with-loans").checked ? [...heard.others, ...heard.loans] : [...heard.others];
  kept.sort((a, b) => b.at - a.at);
  $("events").replaceChildren(...kept.slice(0, LINES).map(describe));
}

function drawWaiting() {
  const lines = picture.waiting.map(({ seconds: waited, wants_new: wantsNew, borrower }) => {
    const who = `${whoAndWhere(borrower)}${wantsNew ? " · wants a new one" : ""}`;
    return make("li", { title: borrower.borrowed_at }, make("time", {}, seconds(waited)), who);
  });
  const unseen = picture.waiters - picture.waiting.length;
  if (unseen > 0) lines.push(make("li", {}, `and ${number.format(unseen)} more`));
  $("waiting").replaceChildren(...lines);
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
  const { counts, stats, connections } = picture;
  put($("places"), `${number.format(total(counts))} / ${number.format(picture.max_connections)}`);
  put($("waiters"), number.format(picture.waiters));
  const earlier = samples.find(({ at }) => picture.at - at <= 5);
  const span = picture.at - earlier.at;
  put($("loans-per-second"), span ? number.format(Math.round((stats.borrows - earlier.borrows) / span)) : "–");
  put($("mean-wait"), stats.waits ? seconds(stats.wait_seconds / stats.waits) : "–");
  const overdue = connections.filter((connection) => connection.is_overdue).length;
  put($("overdue"), overdue);
  $("overdue").classList.toggle("overdue", overdue > 0);
  for (const state of machine.states) put(counters[state], number.format(counts[state]));
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
  say(isClosed ? "closed" : "live", isClosed ? "pool closed" : isStarted ? "live" : "not started");
  $("failure").hidden = picture.failure === null;
  put($("failure"), picture.failure === null ? "" : `The last dial has failed: ${picture.failure}`);
  for (const part of [drawFigures, drawTimeline, drawConnections, drawWaiting, drawEvents, drawStats]) part();
  if ($("details").open) drawDetails();
}

function start(table) {
  const isFirst = machine === undefined;
  machine = table;
  if (!isFirst) return; // the stream was lost and is back
  startTimeline();
  startTable();
  startDiagram();
  const here = pool ?? machine.pools[0];
  const links = machine.pools.map((name) => {
    const href = `?pool=${encodeURIComponent(name)}`;
    return make("a", name === here ? { href, "aria-current": "page" } : { href }, name);
  });
  if (links.length > 1) $("pools").replaceChildren(...links);
}

function startDiagram() {
  const narrow = matchMedia("(max-width: 700px)");
  const redraw = () => {
    const { svg, counts } = diagram(machine, narrow.matches);
    counters = counts;
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
  samples.push({ at: picture.at, counts: picture.counts, borrows: picture.stats.borrows });
  while (picture.at - samples[0].at > WINDOW[1]) samples.shift();
  hear(picture);
  drawAll();
};
stream.onerror = async () => {
  if (stream.readyState !== EventSource.CLOSED) return say("lost", "connection lost, trying again …");
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
