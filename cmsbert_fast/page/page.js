// What happens: the recording's time marks words; words, charts and keys move the time; the slider chooses the layer.

const page = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const state = {
  layer: 0,
  scales: scalesOf(page),
  gated: gatedOf(page),
  mostScore: Math.max(3, ...page.segments.map((segment) => Math.abs(segment.scores[0]))),
  media: 0,
  time: null,
};
let player = null, current = null, blocks = [];

const actions = {
  seek(card, k) {
    const { times, span, media } = card.segment;
    const time = times ? times[k][0] : span ? span[0] : null;
    if (time !== null) goTo(media, time);
  },
  seekShare(card, share) {
    const { span, media } = card.segment;
    if (span) goTo(media, span[0] + share * (span[1] - span[0]));
  },
  neighbour(card, step) {
    const next = cards[cards.indexOf(card) + step];
    const word = next?.words[next.selected ?? 0];
    word?.focus();
    return Boolean(word);
  },
  drawn(card) { card.pointAt(card.segment.media === state.media ? state.time : null); },
};
const cards = page.segments.map((segment, index) => new SegmentCard(page, segment, index, state, actions));

/** Every word with times of a recording, in order of its start. */
const spoken = page.media.map((_, media) => cards
  .filter((card) => card.segment.media === media && card.segment.times)
  .flatMap((card) => card.segment.times.map(([start, stop], k) => ({ start, stop, element: card.words[k] })))
  .sort((a, b) => a.start - b.start));

function wordAt(time) {
  const words = spoken[state.media];
  let low = 0, high = words.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle].start <= time) low = middle + 1; else high = middle;
  }
  return low && time < words[low - 1].stop ? words[low - 1].element : null;
}

function follow(time) {
  state.time = time;
  const word = wordAt(time);
  if (word !== current) {
    current?.classList.remove("current");
    current?.removeAttribute("aria-current");
    word?.classList.add("current");
    word?.setAttribute("aria-current", "true");
    current = word;
    if (word && player && !player.paused && at("follow").checked) {
      word.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
    }
  }
  cards.forEach((card, k) => {
    const inside = card.pointAt(card.segment.media === state.media ? time : null);
    blocks[k]?.classList.toggle("current", inside);
  });
  at("time").value = time;
  at("time").setAttribute("aria-valuetext", clock(time));
  at("time-text").textContent = clock(time);
}

function goTo(media, time) {
  if (media !== state.media) {
    state.media = media;
    if (player) load(media);
    prepareClock();
  }
  if (player && page.media[media].url && !player.error) player.currentTime = time;
  follow(time);
}

function load(media) {
  const { url, name } = page.media[media];
  at("media-note").textContent = url ? "" : `There is no recording of ${name}; its times are those of the features.`;
  if (url) player.src = url;
  player.hidden = !url;
  if (!url) player.pause();
  player.setAttribute("aria-label", name);
}

/** A slider in place of the player where nothing can be played. */
function prepareClock() {
  const stops = page.segments.filter((segment) => segment.media === state.media && segment.span).map((segment) => segment.span[1]);
  at("time").max = Math.max(0, ...stops);
  const playable = player && page.media[state.media].url && !player.error;
  at("clock").hidden = Boolean(playable) || !stops.length;
}

function makePlayer() {
  if (!page.media.some((media) => media.url)) {
    const timed = page.segments.some((segment) => segment.span);
    at("media-note").textContent = timed ? "Without a recording: times are those of the features." : "These data have no times.";
    return;
  }
  player = html("video", { controls: true, preload: "metadata" });
  player.setAttribute("playsinline", "");
  player.addEventListener("error", () => {
    const { name, url } = page.media[state.media];
    at("media-note").textContent = `${name} cannot be played here; the page looks for it at ${decodeURI(url)}.`;
    prepareClock();
  });
  player.addEventListener("loadedmetadata", () => player.classList.toggle("sound", !player.videoWidth));
  for (const event of ["timeupdate", "seeking", "seeked"]) player.addEventListener(event, () => follow(player.currentTime));
  player.addEventListener("playing", function step() {
    if (player.paused || player.ended) return;
    follow(player.currentTime);
    requestAnimationFrame(step);
  });
  load(state.media);
  at("player").append(player);
  at("follow-label").hidden = false;
}

function chooseLayer(layer) {
  state.layer = layer;
  const shown = page.layers[layer] + 1;
  at("layer").setAttribute("aria-valuetext", `layer ${shown} of ${page.depth}`);
  at("layer-text").textContent = `${shown} of ${page.depth}`;
  for (const modality of MODALITIES) {
    const most = state.scales[modality][layer];
    at(`scale-${modality}`).textContent = most ? `full bar: ${page.signed ? "\u00b1" : ""}${number(most)}` : "all gates are 0";
  }
  for (const card of cards) card.drawLayer();
}

function makeSettings() {
  if (!page.layers.length) {
    for (const card of cards) card.drawLayer();
    return;
  }
  at("settings").hidden = false;
  for (const entry of document.querySelectorAll(".legend > div")) {
    entry.hidden = !state.gated.includes(entry.dataset.modality);
  }
  at("layer").max = page.layers.length - 1;
  at("layer").value = state.layer;
  at("layer").disabled = page.layers.length < 2;
  at("layer").addEventListener("input", () => chooseLayer(Number(at("layer").value)));
  chooseLayer(state.layer);
}

function makeTranscript() {
  page.media.forEach((media, k) => {
    const own = cards.filter((card) => card.segment.media === k);
    const heading = html("h2", { id: `media-${k}` }, media.name);
    const section = html("section", {}, ...(page.media.length > 1 ? [heading] : []), ...own.map((card) => card.element));
    if (page.media.length > 1) section.setAttribute("aria-labelledby", heading.id);
    at("transcript").append(section);
  });
}

function makeOverview() {
  if (page.classes.length || page.media.length > 1 || cards.length < 2) return;
  const made = overviewChart(page.segments, state.mostScore);
  blocks = made.blocks;
  at("overview").hidden = false;
  at("overview-title").textContent = `Score of each segment (\u2212${number(state.mostScore)} to +${number(state.mostScore)})`;
  at("overview-chart").append(made.chart);
  blocks.forEach((block, k) => block.addEventListener("click", () => {
    cards[k].words[0]?.focus();
    actions.seek(cards[k], 0);
  }));
}

makeTranscript();
makePlayer();
prepareClock();
makeOverview();
makeSettings();
at("time").addEventListener("input", () => follow(Number(at("time").value)));
if (cards[0]?.traces) cards[0].traces.open = true;
