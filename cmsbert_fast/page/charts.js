// Numbers, and charts as SVG. All text becomes text nodes or attributes, never markup.

const NAMES = { visual: "Face", acoustic: "Voice" };
const MODALITIES = Object.keys(NAMES);

function html(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Rows of numbers from integers of so many bytes between the lowest and the highest of each row. */
function unpacked(packed, bytes) {
  const text = atob(packed.data);
  const count = text.length / bytes / packed.low.length;
  const most = 256 ** bytes - 1;
  return packed.low.map((low, row) => {
    const range = packed.high[row] - low;
    return Array.from({ length: count }, (_, k) => {
      const at = (row * count + k) * bytes;
      const whole = text.charCodeAt(at) + (bytes > 1 ? 256 * text.charCodeAt(at + 1) : 0);
      return low + (range * whole) / most;
    });
  });
}

function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const rest = tenths % 600;
  return `${Math.floor(tenths / 600)}:${rest < 100 ? "0" : ""}${(rest / 10).toFixed(1)}`;
}

function number(value, digits = 3) {
  return Number(value.toPrecision(digits)).toString().replace("-", "\u2212");
}

function score(value) {
  return (value > 0 ? "+" : "") + value.toFixed(2).replace("-", "\u2212");
}

/** Where a time, or the point of a curve without times, is along a segment: 0 to 1. */
function placesOf(segment, frames, points) {
  if (frames.times && segment.span) {
    const [start, stop] = segment.span;
    return frames.times.slice(0, points).map((time) => (time - start) / (stop - start || 1));
  }
  return Array.from({ length: points }, (_, k) => (k + 0.5) / frames.points);
}

const WIDTH = 1000, HEIGHT = 100;
const DOTS = 60; // points of a curve that is drawn with its points

function path(xs, values, low, high) {
  const range = high - low || 1;
  return xs.map((x, k) => `${k ? "L" : "M"}${(x * WIDTH).toFixed(1)} ${y((values[k] - low) / range)}`).join("");
}

/** From the bottom, with room above and below for the width of a line. */
function y(share) {
  return (HEIGHT - 4 - share * (HEIGHT - 8)).toFixed(1);
}

/** A curve with gates (values over time, and the lowest and highest of the layer) shaded behind it. */
function traceChart(segment, frames, values, gates, word, label) {
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const times = segment.times && word !== null ? segment.times[word] : null;
  if (times && segment.span) {
    const [start, stop] = segment.span;
    const [from, to] = times.map((time) => (Math.min(Math.max(time, start), stop) - start) / (stop - start || 1));
    chart.append(svg("rect", { class: "spoken", x: from * WIDTH, width: Math.max(0, to - from) * WIDTH, y: 0, height: HEIGHT }));
  }
  const xs = placesOf(segment, frames, frames.points);
  if (gates) {
    const shown = xs.slice(0, gates.values.length);
    const low = Math.min(0, gates.low), high = Math.max(0, gates.high);
    if (high > low && shown.length) {
      const base = y((0 - low) / (high - low));
      const outline = path(shown, gates.values, low, high);
      const [first, last] = [shown[0], shown[shown.length - 1]].map((x) => (x * WIDTH).toFixed(1));
      const shape = shown.length > 1 ? `M${first} ${base}L${outline.slice(1)}L${last} ${base}Z` : bar(first, gates.values[0], low, high);
      chart.append(svg("path", { class: "gate", d: shape }));
    }
  }
  const low = Math.min(...values), high = Math.max(...values);
  const curve = values.length > 1 ? path(xs, values, low, high) : `M0 ${y(0.5)}L${WIDTH} ${y(0.5)}`;
  chart.append(svg("path", { class: "curve", d: curve }));
  if (values.length <= DOTS) {
    const range = high - low || 1;
    chart.append(svg("path", { class: "dots", d: xs.map((x, k) => `M${(x * WIDTH).toFixed(1)} ${y((values[k] - low) / range)}h0`).join("") }));
  }
  chart.append(svg("line", { class: "cursor", x1: -9, x2: -9, y1: 0, y2: HEIGHT }));
  return chart;
}

/** The gate of a single frame. */
function bar(x, value, low, high) {
  const [bottom, top] = [0, value].map((v) => y((v - low) / (high - low)));
  return `M${x - 20} ${bottom}V${top}H${Number(x) + 20}V${bottom}Z`;
}

/** The score of each segment as a bar from 0, over time where it is known. */
function overviewChart(segments, most) {
  const timed = segments.every((segment) => segment.span) && segments.length > 0;
  const end = timed ? Math.max(...segments.map((segment) => segment.span[1])) : segments.length;
  const begin = timed ? Math.min(0, ...segments.map((segment) => segment.span[0])) : 0;
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const blocks = segments.map((segment, k) => {
    const [from, to] = timed ? segment.span : [k + 0.05, k + 0.95];
    const height = (Math.abs(segment.scores[0]) / most) * (HEIGHT / 2);
    return svg("rect", {
      class: "block",
      x: ((from - begin) / (end - begin || 1)) * WIDTH,
      width: Math.max(2, ((to - from) / (end - begin || 1)) * WIDTH),
      y: segment.scores[0] > 0 ? HEIGHT / 2 - height : HEIGHT / 2,
      height: Math.max(1, height),
    });
  });
  chart.append(svg("line", { class: "zero", x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2 }), ...blocks);
  return { chart, blocks };
}
