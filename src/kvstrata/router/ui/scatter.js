// Predicted against actual time to the first token, both axes logarithmic.

import { h, s } from "./dom.js";
import * as format from "./format.js";
import { appraisalOf, firstToken, SOURCES, sourceOf } from "./terms.js";

const WIDTH = 520;
const HEIGHT = 330;
const LEFT = 62;
const BOTTOM = 40;
const TOP = 8;
const RIGHT = 12;
const MOST = 1000;

/** Points of the decisions that were seen since the page was opened; the oldest are forgotten. */
export class Points {
  #points = new Map();

  take(decisions) {
    for (const decision of [...decisions].reverse()) {
      const outcome = decision.outcome;
      if (!outcome || outcome.failed || outcome.status !== 200 || outcome.streamed === false) continue;
      const appraisal = appraisalOf(decision, outcome.replica);
      const predicted = firstToken(appraisal);
      if (predicted === null || !(outcome.ttft > 0) || this.#points.has(decision.id)) continue;
      this.#points.set(decision.id, {
        predicted,
        actual: outcome.ttft,
        hue: sourceOf(appraisal),
        replica: outcome.replica,
      });
    }
    for (const id of this.#points.keys()) {
      if (this.#points.size <= MOST) break;
      this.#points.delete(id);
    }
  }

  get all() {
    return [...this.#points.values()];
  }
}

/** The least range of 1, 2 and 5 times powers of ten that holds all values. */
function range(values) {
  const steps = [];
  for (let power = -5; power <= 4; power += 1) for (const digit of [1, 2, 5]) steps.push(digit * 10 ** power);
  const least = Math.min(...values);
  const most = Math.max(...values);
  let first = steps.findLastIndex((step) => step <= least);
  let last = steps.findIndex((step) => step >= most);
  first = Math.max(first, 0);
  if (last < 0) last = steps.length - 1;
  while (last - first < 3) {
    if (first > 0) first -= 1;
    if (last - first < 3 && last < steps.length - 1) last += 1;
  }
  return { low: steps[first], high: steps[last], ticks: steps.slice(first, last + 1) };
}

function labels(ticks) {
  return ticks.length <= 8 ? ticks : ticks.filter((tick) => Math.abs(Math.log10(tick) - Math.round(Math.log10(tick))) < 1e-6);
}

const SIGNS = {
  device: (x, y) => s("circle", { cx: x, cy: y, r: 3.4 }),
  memory: (x, y) => s("rect", { x: x - 3, y: y - 3, width: 6, height: 6 }),
  storage: (x, y) => s("path", { d: `M${x} ${y - 4}l4 7h-8z` }),
  computed: (x, y) => s("path", { d: `M${x} ${y - 4.2}l4.2 4.2l-4.2 4.2l-4.2 -4.2z` }),
};

function sign(point, x, y) {
  const node = SIGNS[point.hue](x.toFixed(1) * 1, y.toFixed(1) * 1);
  node.setAttribute("class", `point ink-${point.hue}`);
  const told = `${point.replica}: predicted ${format.seconds(point.predicted)}, actual ${format.seconds(point.actual)}`;
  node.append(s("title", null, told));
  return node;
}

function frame(x, y, { low, high, ticks }) {
  const shown = labels(ticks);
  const band = `M${x(low)} ${y(low * 2)}L${x(high / 2)} ${y(high)}L${x(high)} ${y(high)}L${x(high)} ${y(high / 2)}L${x(low * 2)} ${y(low)}L${x(low)} ${y(low)}Z`;
  return [
    s("path", { class: "band", d: band }),
    ticks.map((tick) => [
      s("path", { class: "grid", d: `M${x(tick)} ${y(low)}V${y(high)}M${x(low)} ${y(tick)}H${x(high)}` }),
    ]),
    s("path", { class: "diagonal", d: `M${x(low)} ${y(low)}L${x(high)} ${y(high)}` }),
    shown.map((tick) => [
      s("text", { class: "tick", x: x(tick), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, tickText(tick)),
      s("text", { class: "tick", x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)),
    ]),
    s("text", { class: "axis", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "predicted"),
    s("text", { class: "axis", transform: `translate(12 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, "actual"),
  ];
}

const tickText = (tick) => (tick < 0.999 ? `${Number((tick * 1000).toPrecision(1))}\u00a0ms` : `${tick}\u00a0s`);

export function scatter(points) {
  if (!points.length) return h("p", { class: "empty" }, "No streamed answer with a prediction was seen yet.");
  const limits = range(points.flatMap(({ predicted, actual }) => [predicted, actual]));
  const span = Math.log(limits.high / limits.low);
  const inside = (value) => Math.min(Math.max(Math.log(value / limits.low) / span, 0), 1);
  const x = (value) => Math.round((LEFT + inside(value) * (WIDTH - LEFT - RIGHT)) * 10) / 10;
  const y = (value) => Math.round((HEIGHT - BOTTOM - inside(value) * (HEIGHT - TOP - BOTTOM)) * 10) / 10;
  const near = points.filter(({ predicted, actual }) => actual <= 2 * predicted && predicted <= 2 * actual).length;
  const told = `${points.length} answers; ${format.share(near / points.length)} within a factor of two of their prediction`;
  const hues = new Set(points.map(({ hue }) => hue));
  return h(
    "figure",
    null,
    s(
      "svg",
      { class: "scatter", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": told },
      frame(x, y, limits),
      points.map((point) => sign(point, x(point.predicted), y(point.actual))),
    ),
    h(
      "figcaption",
      null,
      h(
        "ul",
        { class: "legend" },
        SOURCES.filter(({ id }) => hues.has(id)).map(({ id, label }) =>
          h("li", null, s("svg", { class: "sign", viewBox: "-6 -6 12 12", "aria-hidden": "true" }, legendSign(id)), label),
        ),
      ),
      h("p", { class: "meta" }, `${told} (the band).`),
    ),
  );
}

function legendSign(hue) {
  const node = SIGNS[hue](0, 0);
  node.setAttribute("class", `point ink-${hue}`);
  return node;
}
