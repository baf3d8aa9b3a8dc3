// The transcript: a card for each segment with its score, its words with bars, and traces.

/** Full height of the bars of a layer, by modality. */
function scalesOf(page) {
  return Object.fromEntries(MODALITIES.map((modality) => [modality, page.layers.map((_, layer) => {
    const every = page.segments.flatMap((segment) => segment.frames[modality]?.gates?.[layer] ?? []);
    return every.reduce((most, gate) => Math.max(most, Math.abs(gate)), 0);
  })]));
}

/** The modalities with gates. */
function gatedOf(page) {
  return MODALITIES.filter((modality) => page.segments.some((segment) => segment.frames[modality]?.gates));
}

class SegmentCard {
  /** `page`, the segment and its number; `state`: layer, scales, modalities with gates; `actions` seek and select. */
  constructor(page, segment, index, state, actions) {
    Object.assign(this, { page, segment, index, state, actions, selected: null, maps: {}, values: {}, cursors: [] });
    this.choices = Object.fromEntries(MODALITIES.map((modality) => [modality, 0]));
    this.words = segment.words.map((word, k) => this.wordOf(word, k));
    this.group = html("div", { className: "words" }, ...this.words);
    this.group.setAttribute("role", "group");
    const how = segment.times ? "; arrow keys move, Enter goes to the word in the recording" : "; arrow keys move";
    this.group.setAttribute("aria-label", `Words of segment ${index + 1}${how}`);
    this.group.addEventListener("keydown", (event) => this.moveBy(event));
    this.element = html("article", {}, this.header(), this.group);
    this.element.setAttribute("aria-labelledby", `segment-${index}`);
    if (Object.keys(segment.frames).length) this.element.append(this.tracesBelow());
    if (this.words.length) this.words[0].tabIndex = 0;
  }

  header() {
    const { segment, index } = this;
    const heading = html("h3", { id: `segment-${index}` }, html("b", {}, `${index + 1}`));
    heading.append(segment.span ? `  ${clock(segment.span[0])}\u2013${clock(segment.span[1])}` : `  ${segment.id}`);
    if (segment.span) heading.title = segment.id;
    const found = html("div", { className: "score" });
    const { classes, several } = this.page;
    if (!classes.length) {
      const value = segment.scores[0], half = Math.min(50, (50 * Math.abs(value)) / this.state.mostScore);
      const fill = html("i");
      fill.style.left = `${value < 0 ? 50 - half : 50}%`;
      fill.style.width = `${half}%`;
      const gauge = html("span", { className: "gauge" }, fill);
      gauge.setAttribute("aria-hidden", "true");
      found.append(gauge, html("b", {}, html("span", { className: "said" }, "score "), score(value)));
    } else {
      const ranked = segment.scores.map((chance, k) => [chance, classes[k]]).sort((a, b) => b[0] - a[0]);
      const holds = (chance, k) => (several ? chance > 0.5 : k === 0);
      found.className = "chances";
      found.append(...ranked.map(([chance, name], k) =>
        html("span", {}, html(holds(chance, k) ? "b" : "span", {}, `${name} ${Math.round(100 * chance)} %`))));
    }
    return html("header", {}, heading, found);
  }

  wordOf(word, k) {
    const { segment, page } = this;
    const text = html("span", { className: "text", dir: "auto" }, word);
    const made = html("button", { type: "button", className: "word", tabIndex: -1 }, text);
    if (k >= segment.read) {
      made.classList.add("cut");
      made.title = "The model did not read this word: the text is longer than its limit.";
    }
    if (page.layers.length) {
      const bars = html("span", { className: page.signed ? "bars signed" : "bars" });
      bars.setAttribute("aria-hidden", "true");
      if (k < segment.read) {
        bars.append(...this.state.gated.map((modality) => html("i", { className: `bar ${modality}` })));
      }
      made.append(bars);
    }
    made.addEventListener("click", () => { this.select(k); this.actions.seek(this, k); });
    made.addEventListener("focus", () => this.select(k));
    return made;
  }

  gateOf(modality, k) {
    return this.segment.frames[modality]?.gates?.[this.state.layer]?.[k];
  }

  /** Draws bars and labels for the layer of the state. */
  drawLayer() {
    const { page, segment, state } = this;
    this.words.forEach((made, k) => {
      const parts = [segment.words[k]];
      if (segment.times) parts.push(`${clock(segment.times[k][0])} to ${clock(segment.times[k][1])}`);
      for (const bar of made.querySelectorAll(".bar")) {
        const modality = bar.classList[1], gate = this.gateOf(modality, k) ?? 0;
        const most = state.scales[modality][state.layer], share = most ? Math.abs(gate) / most : 0;
        bar.style.height = `${(page.signed ? 50 : 100) * share}%`;
        if (page.signed) bar.style.top = gate < 0 ? "50%" : `${50 - 50 * share}%`;
        parts.push(`${NAMES[modality].toLowerCase()} gate ${number(gate)}`);
      }
      if (k >= segment.read) parts.push("not read by the model");
      made.setAttribute("aria-label", parts.join(", "));
    });
    this.drawTraces();
  }

  select(k) {
    if (this.selected === k) return;
    this.words.forEach((made, j) => { made.tabIndex = j === k ? 0 : -1; made.classList.toggle("selected", j === k); });
    this.selected = k;
    this.drawTraces();
  }

  moveBy(event) {
    const at = this.words.indexOf(document.activeElement), last = this.words.length - 1;
    const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last };
    if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (this.actions.neighbour(this, event.key === "ArrowDown" ? 1 : -1)) event.preventDefault();
    } else if (event.key in steps) {
      event.preventDefault();
      this.words[Math.min(last, Math.max(0, steps[event.key]))].focus();
    }
  }

  tracesBelow() {
    this.plots = html("div");
    this.traces = html("details", {}, html("summary", {}, "Features and gates over time"), this.plots);
    this.traces.addEventListener("toggle", () => this.drawTraces());
    return this.traces;
  }

  /** The gates of a layer over time: of the selected word, of all words on average without one; null: there are none. */
  gatesOver(modality) {
    const frames = this.segment.frames[modality], { layer } = this.state;
    if (!frames.map || !frames.map.points) return null;
    const words = frames.gates[layer].length;
    if (!words || (this.selected ?? 0) >= words) return null;
    this.maps[modality] ??= unpacked(frames.map, 1);
    const points = frames.map.points, row = this.maps[modality][layer];
    const chosen = this.selected === null ? Array.from({ length: words }, (_, k) => k) : [this.selected];
    const values = Array.from({ length: points }, (_, j) =>
      chosen.reduce((sum, k) => sum + row[k * points + j], 0) / chosen.length);
    return { values, low: frames.map.low[layer], high: frames.map.high[layer] };
  }

  drawTraces() {
    if (!this.traces?.open) return;
    const { segment } = this, kept = document.activeElement?.id;
    this.cursors = [];
    const shown = MODALITIES.filter((modality) => segment.frames[modality]).map((modality) => this.trace(modality));
    const ends = segment.span ? segment.span.map(clock) : ["first frame", "last frame"];
    const axis = html("div", { className: "axis" }, ...ends.map((end) => html("span", {}, end)));
    const whose = this.selected === null ? "mean over all words" : `of \u201c${segment.words[this.selected]}\u201d`;
    const means = MODALITIES.map((modality) => segment.frames[modality]).filter((frames) => frames && frames.points < frames.count)
      .map((frames) => number(frames.count / frames.points, 2));
    const parts = ["Line: the feature."];
    if (this.page.layers.length) parts.push(`Shaded: gates over time, ${whose}.`);
    if (means.length) parts.push(`A point is the mean of ${[...new Set(means)].join(" or ")} frames.`);
    this.plots.replaceChildren(...shown, axis, html("p", { className: "explained" }, parts.join(" ")));
    if (kept) document.getElementById(kept)?.focus({ preventScroll: true });
    this.actions.drawn(this);
  }

  trace(modality) {
    const { segment } = this, frames = segment.frames[modality], { columns, units } = this.page.features[modality];
    this.values[modality] ??= unpacked(frames.values, 2);
    const chosen = this.choices[modality], values = this.values[modality][chosen], unit = units[chosen] ? ` ${units[chosen]}` : "";
    const choice = html("select", { id: `feature-${this.index}-${modality}` }, ...columns.map((name, k) =>
      html("option", { value: k, selected: k === chosen }, name)));
    choice.addEventListener("change", () => { this.choices[modality] = Number(choice.value); this.drawTraces(); });
    const [low, high] = [Math.min(...values), Math.max(...values)].map((value) => number(value));
    const gates = this.gatesOver(modality);
    let range = `${low} to ${high}${unit}`;
    if (gates) {
      const [least, most] = [Math.min(...gates.values), Math.max(...gates.values)].map((gate) => number(gate));
      range += least === most ? `; gate ${least}` : `; gate ${least} to ${most}`;
    }
    const label = `${NAMES[modality]}, ${columns[chosen]}: ${range}`;
    const chart = traceChart(segment, frames, values, gates, this.selected, label);
    chart.addEventListener("click", (event) => {
      const box = chart.getBoundingClientRect();
      this.actions.seekShare(this, (event.clientX - box.left) / box.width);
    });
    this.cursors.push(chart.querySelector(".cursor"));
    const head = html("div", {}, html("i", { className: `swatch ${modality}` }),
      html("label", { htmlFor: choice.id }, NAMES[modality]), choice, html("span", { className: "range" }, range));
    return html("div", { className: `trace ${modality}` }, head, html("div", { className: "plot" }, chart));
  }

  /** Moves the mark of the time; null hides it. */
  pointAt(time) {
    const [start, stop] = this.segment.span ?? [0, 0];
    const inside = time !== null && this.segment.span && time >= start && time <= stop;
    const x = inside ? ((time - start) / (stop - start || 1)) * WIDTH : -9;
    for (const cursor of this.cursors) { cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); }
    this.element.classList.toggle("current", Boolean(inside));
    return Boolean(inside);
  }
}
