// The state diagram, laid out from the server's table of transitions: the states in a row, and the
// final ones as bars along it. Upright, for a narrow page, all of it is turned over.

const SVG = "http://www.w3.org/2000/svg";

export function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Return the picture, and for each state the text nodes of its count and its mean. */
export function diagram({ states, transitions }, isUpright) {
  // Lengths run along the row, depths across it; the arcs are on one side, the bars on the other.
  const [length, gap, depth] = isUpright ? [68, 44, 108] : [98, 70, 74];
  const [arcs, reach, fall, bar] = isUpright ? [66, 16, 62, 78] : [42, -8, 60, 66];
  const leaves = states.filter((state) => !transitions.some(([, source]) => source === state));
  const row = states.filter((state) => !leaves.includes(state));
  const total = row.length * (length + gap) - gap;
  const start = (state) => row.indexOf(state) * (length + gap);
  const floor = (leaf) => arcs + depth + fall + leaves.indexOf(leaf) * (bar + 8);
  const turn = (along, across) => (isUpright ? [across, along] : [along, across]);

  const [width, height] = turn(total + 4, floor(leaves.at(-1)) + bar + 4);
  const svg = draw("svg", { viewBox: `-2 -2 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", "The states, the moves between them, and the count of each");
  const marker = { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, orient: "auto" };
  const tip = draw("path", { d: "M0 0 8 4 0 8z" });
  svg.append(draw("marker", { ...marker, markerWidth: 7, markerHeight: 7 }, tip));

  for (const [trigger, source, dest] of transitions) {
    const from = start(source);
    let points; // two, or four of an arc
    if (leaves.includes(dest)) {
      const along = from + length / 2;
      points = [[along, arcs + depth], [along, floor(dest) - 1]];
    } else if (Math.abs(start(dest) - from) > length + gap) {
      const [a, b] = [from + length / 2, start(dest) + length / 2];
      points = [[a, arcs], [a, reach], [b, reach], [b, arcs - 1]];
    } else {
      const isBack = start(dest) < from;
      const isMutual = transitions.some(([, one, other]) => one === dest && other === source);
      const side = isMutual ? (isUpright ? 32 : 8) : 0;
      const [a, b] = isBack ? [from, start(dest) + length + 1] : [from + length, start(dest) - 1];
      const across = arcs + depth / 2 + (isBack === isUpright ? -side : side);
      points = [[a, across], [b, across]];
    }
    svg.append(...edge(trigger, points.map((point) => turn(...point))));
  }

  const texts = {};
  for (const state of states) {
    const isLeaf = leaves.includes(state);
    const [x, y] = isLeaf ? turn(0, floor(state)) : turn(start(state), arcs);
    const [width, height] = isLeaf ? turn(total, bar) : turn(length, depth);
    const middle = { x: x + width / 2, "text-anchor": "middle" };
    const name = draw("text", { ...middle, y: y + height / 2 - 15, class: "name" }, state);
    const count = draw("text", { ...middle, y: y + height / 2 + 7, class: "count" }, "0");
    const mean = draw("text", { ...middle, y: y + height / 2 + 25, class: "mean" }, "mean 0");
    texts[state] = { count, mean };
    const box = draw("rect", { x, y, width, height, rx: 8 });
    svg.append(draw("g", { "data-state": state, class: "node" }, box, name, count, mean));
  }
  return { svg, texts };
}

/** An arrow with its label: on a vertical one and on an arc, beside a horizontal one. */
function edge(label, points) {
  const [first, ...rest] = points.map((point) => point.join(" "));
  const d = `M${first}${rest.length > 1 ? "C" : "L"}${rest.join(" ")}`;
  const weights = rest.length > 1 ? [1 / 8, 3 / 8, 3 / 8, 1 / 8] : [1 / 2, 1 / 2];
  const [x, y] = [0, 1].map((axis) => points.reduce((sum, point, n) => sum + point[axis] * weights[n], 0));
  const [dx, dy] = [points.at(-1)[0] - points[0][0], points.at(-1)[1] - points[0][1]];
  const isBeside = rest.length === 1 && dy === 0;
  const at = { x, y: y + (isBeside ? (dx > 0 ? -7 : 17) : 4), "text-anchor": "middle" };
  return [
    draw("path", { d, class: "edge", "marker-end": "url(#arrow)" }),
    draw("text", { ...at, class: "trigger" }, label),
  ];
}
