// What was measured, over time: stacked areas, a line and bars, on one axis of time.
// A sample is a second: {at, means, loans, longest_wait, refused, lost}.

import { draw } from "./diagram.js";

const WINDOW = [20, 5 * 60]; // seconds of the axis: at first, and at most
const ROOM = 1.45; // above the peaks of the small charts, for their labels
const GAP = 3; // seconds without a sample that nothing bridges

export const samples = [];

/** Take in the last seconds; the present one is told again, as it goes on. */
export function remember(seconds) {
  for (const sample of seconds) {
    if (samples.length && samples.at(-1).at === sample.at) samples.pop();
    if (!samples.length || samples.at(-1).at < sample.at) samples.push(sample);
  }
  while (samples.length && samples.at(-1).at - samples[0].at > WINDOW[1]) samples.shift();
}

/** Return the samples of the last seconds that are over. */
export function last(seconds) {
  return samples.slice(-1 - seconds, -1);
}

export function startCharts(svgs, states) {
  const areas = new Map(states.map((state) => [state, draw("path", { "data-state": state, class: "area" })]));
  svgs.states.replaceChildren(...areas.values());
  const line = { waiting: draw("path", { class: "area waiting" }), longest: draw("path", { class: "line" }) };
  svgs.waiting.replaceChildren(line.waiting, line.longest);
  const bars = { lost: draw("path", { class: "bar lost" }), refused: draw("path", { class: "bar refused" }) };
  svgs.failed.replaceChildren(bars.lost, bars.refused);
  return (now) => drawCharts({ areas, line, bars }, now);
}

/** Draw everything up to now; return the axis' length, and the top of each chart. */
function drawCharts({ areas, line, bars }, now) {
  const span = Math.min(WINDOW[1], Math.max(WINDOW[0], now - samples[0].at));
  const x = (at) => (1000 - ((now - at) / span) * 1000).toFixed(1);
  const middle = ({ at }, index) => x(index + 1 === samples.length ? now : Math.min(now, at + 0.5));
  const sum = ({ means }) => [...areas.keys()].reduce((total, state) => total + means[state], 0);
  const tops = {
    states: round(Math.max(4, ...samples.map(sum))),
    waiting: round(Math.max(2, ...samples.map(({ means }) => means.waiting))),
    longest: Math.max(...samples.map((sample) => sample.longest_wait)),
    failed: Math.max(1, ...samples.map(({ refused, lost }) => refused + lost)),
  };
  const below = samples.map(() => 0);
  for (const [state, path] of areas) {
    path.setAttribute("d", area(middle, below, (sample) => sample.means[state] / tops.states));
  }
  line.waiting.setAttribute("d", area(middle, samples.map(() => 0), ({ means }) => means.waiting / tops.waiting / ROOM));
  const longest = runs().map((run) => run.map(([sample, index]) => {
    return `${middle(sample, index)},${depth(sample.longest_wait / (tops.longest || 1) / ROOM)}`;
  }));
  line.longest.setAttribute("d", longest.map((points) => `M${points.join("L")}`).join(""));
  const bar = (from, to) => samples.map((sample) => {
    if (from(sample) === to(sample)) return "";
    const [left, right] = [x(sample.at), x(Math.min(now, sample.at + 0.9))];
    const [foot, head] = [from, to].map((count) => depth(count(sample) / tops.failed / ROOM));
    return `M${left},${foot}V${head}H${right}V${foot}Z`;
  }).join("");
  bars.refused.setAttribute("d", bar(() => 0, ({ refused }) => refused));
  bars.lost.setAttribute("d", bar(({ refused }) => refused, ({ refused, lost }) => refused + lost));
  return { span, tops };
}

function round(peak) {
  const top = Math.ceil(peak);
  return top <= 10 ? top + (top % 2) : Math.ceil(top / 10) * 10;
}

function depth(share) {
  return (100 - share * 100).toFixed(2);
}

/** Return the samples with their places, in runs without a gap. */
function runs() {
  const found = [];
  samples.forEach((sample, index) => {
    if (index === 0 || sample.at - samples[index - 1].at > GAP) found.push([]);
    found.at(-1).push([sample, index]);
  });
  return found;
}

/** Return the outline of an area that stands on what is below, and add it to that. */
function area(middle, below, share) {
  return runs().map((run) => {
    const [upper, lower] = [[], []];
    for (const [sample, index] of run) {
      lower.unshift(`${middle(sample, index)},${depth(below[index])}`);
      upper.push(`${middle(sample, index)},${depth((below[index] += share(sample)))}`);
    }
    return `M${upper.join("L")}L${lower.join("L")}Z`;
  }).join("");
}
