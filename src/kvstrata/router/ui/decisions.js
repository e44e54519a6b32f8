// The last decisions, and all that one of them was made of.

import { cell, legend, stack } from "./bars.js";
import { h } from "./dom.js";
import * as format from "./format.js";
import { appraisalOf, firstToken, foreseen, gross, SOURCES, TERMS } from "./terms.js";

const MOST_CANDIDATES = 64;
/** Decisions that are shown before all are asked for. */
export const FEW = 12;
const REASONS = {
  reuse: "nobody has more of its prompt",
  cold: "nobody has anything of its prompt",
  spread: "others have more, but it is not worth the wait or the load",
  stay: "as good as any, and the conversation was there before",
  only: "there is no other",
  probe: "to learn how quick a tier is",
};

const short = (path) => path.replace(/^\/v\d+\//, "").replace("chat/completions", "chat");

const arrow = (before, after) => [h("span", { class: "before" }, before), " → ", h("b", null, after)];

function ending(outcome) {
  if (!outcome) return h("span", { class: "mark new" }, "◌ running");
  const bad = outcome.failed || outcome.status !== 200;
  const text = outcome.status === 0 ? "no answer" : String(outcome.status);
  const tries = outcome.tries > 1 ? `, try ${outcome.tries}` : "";
  return h("span", { class: `mark ${bad ? "down" : "up"}` }, `${bad ? "▲" : "●"} ${text}${tries}`);
}

function reuse(decision) {
  if (!decision.tokens) return cell("reused", null, h("span", { class: "faint", title: decision.doubt || null }, "prompt not known"));
  const parts = foreseen(appraisalOf(decision, decision.chosen), decision.tokens);
  const shown = SOURCES.map(({ id, label }) => ({ hue: id, size: parts[id], text: `${label}: ${format.tokens(parts[id])}` }));
  const told = shown.filter(({ size }) => size > 0).map(({ text }) => text).join(", ");
  return cell("reused", { class: "reused", title: told }, stack(shown, decision.tokens, told), h("b", null, format.tokens(decision.tokens - parts.computed)));
}

function row(decision, opened) {
  const appraisal = appraisalOf(decision, decision.chosen);
  const outcome = decision.outcome;
  const saidNothing = outcome && outcome.cached_tokens === null;
  return h(
    "tr",
    { class: "row", "data-key": decision.id, "data-decision": decision.id },
    cell("at", { class: "time" }, format.clock(decision.at)),
    cell(
      "request",
      null,
      h("button", { type: "button", class: "opens", "aria-expanded": String(opened) }, short(decision.path)),
      h("span", { class: "note clip", title: decision.model }, decision.model),
    ),
    cell("prompt", { class: "number" }, decision.tokens ? format.tokens(decision.tokens) : format.NONE),
    cell("chosen", null, h("b", null, decision.chosen), h("span", { class: "note", title: REASONS[decision.reason] }, decision.reason)),
    cell("runner-up", null, decision.runner_up ?? format.NONE),
    reuse(decision),
    cell("first token", { class: "number" }, arrow(format.seconds(firstToken(appraisal)), format.seconds(outcome?.ttft))),
    cell(
      "cached",
      { class: "number", title: saidNothing ? "the engine does not tell" : null },
      arrow(decision.tokens ? format.count(appraisal?.tokens) : format.NONE, format.tokens(outcome?.cached_tokens)),
    ),
    cell("answer", null, ending(outcome)),
  );
}

/** Candidates, the best first. */
const ranked = (decision) => [...decision.considered].sort((a, b) => (a.score ?? Infinity) - (b.score ?? Infinity));

function bars(decision, candidates) {
  const most = Math.max(...candidates.map(({ terms }) => gross(terms)));
  if (!(most > 0)) return h("p", { class: "meta" }, "This policy does not go by seconds: it has no terms.");
  const used = TERMS.filter(({ key }) => candidates.some(({ terms }) => terms[key] > 0));
  return h(
    "div",
    { class: "costs" },
    candidates.map((one) => {
      const parts = used.map(({ key, hue, pale, label }) => ({
        hue,
        pale,
        size: one.terms[key],
        text: `${label}: ${format.seconds(one.terms[key])}`,
      }));
      const told = parts.filter(({ size }) => size > 0).map(({ text }) => text).join(", ");
      const chosen = one.replica === decision.chosen;
      const overlap = one.terms.overlap > 0 ? ` − ${format.seconds(one.terms.overlap)} overlap` : "";
      return h(
        "div",
        { class: `cost${chosen ? " chosen" : ""}`, "data-key": one.replica },
        h("span", { class: "who" }, chosen ? "▸ " : "", one.replica),
        stack(parts, most, `${one.replica}: ${told}`),
        h("span", { class: "sum" }, h("b", null, format.seconds(one.score)), overlap),
      );
    }),
    legend(used.map(({ hue, pale, label }) => ({ hue, pale, label }))),
  );
}

const orZero = (value, told) => (value === 0 ? "0" : told(value));

function columns(candidates) {
  const some = (value) => candidates.some((one) => value(one) > 0);
  const terms = [...TERMS, { key: "overlap", label: "− overlap", told: "of the reads goes on while the request waits" }];
  const timed = candidates.some(({ terms: found }) => gross(found) > 0);
  return [
    ["score", (one) => (timed ? format.seconds(one.score) : (one.score?.toPrecision(3) ?? format.NONE)), "by which they are compared; the least is best"],
    timed && ["first token", (one) => format.seconds(firstToken(one)), "seconds until it"],
    ["reused", (one) => orZero(one.tokens, format.tokens), "tokens that need not be computed"],
    ["on device", (one) => orZero(one.device_tokens, format.tokens), "of them, there already"],
    some((one) => one.predicted_tokens) && ["not confirmed", (one) => orZero(one.predicted_tokens, format.tokens), "of them, believed because a request like it was just sent there"],
    some((one) => one.memory_bytes) && ["from memory", (one) => orZero(one.memory_bytes, format.bytes), "to be loaded from host memory"],
    some((one) => one.storage_bytes) && ["from storage", (one) => orZero(one.storage_bytes, format.bytes), "to be loaded from storage"],
    ...terms
      .filter(({ key }) => some((one) => one.terms[key]))
      .map(({ key, label, told }) => [label, (one) => orZero(one.terms[key], format.seconds), told]),
    ["trust", (one) => format.share(one.trust), "in its index"],
    some((one) => one.index_age) && ["index age", (one) => format.long(one.index_age), "since nothing was known to be missing"],
  ].filter(Boolean);
}

function terms(decision, candidates) {
  const shown = columns(candidates);
  return h(
    "div",
    { class: "wide", tabindex: "0", role: "region", "aria-label": "Terms of every candidate" },
    h(
      "table",
      { class: "terms" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "replica"), shown.map(([name, , title]) => h("th", { scope: "col", class: "number", title }, name)))),
      h(
        "tbody",
        null,
        candidates.map((one) =>
          h(
            "tr",
            { class: one.replica === decision.chosen ? "chosen" : null },
            h("th", { scope: "row" }, one.replica, h("small", null, one.replica === decision.chosen ? " chosen" : one.replica === decision.runner_up ? " 2nd" : "")),
            shown.map(([name, told]) => cell(name, { class: "number" }, told(one))),
          ),
        ),
      ),
    ),
  );
}

function inside(decision) {
  const all = ranked(decision);
  const candidates = all.slice(0, MOST_CANDIDATES);
  const notes = [
    `Decision ${decision.id} for ${decision.path}: ${decision.reason}${REASONS[decision.reason] ? `, ${REASONS[decision.reason]}` : ""}.`,
  ];
  if (decision.doubt) notes.push(`Of its prompt is not known: ${decision.doubt}`);
  if (decision.load_cap !== null) notes.push(`The engine was told to load no more than ${format.tokens(decision.load_cap)} (max_load_tokens): computing the rest is quicker.`);
  for (const one of decision.earlier ?? []) notes.push(`It was at ${one.replica} before: status ${one.status}, after ${format.seconds(one.seconds)}.`);
  const left = (decision.candidates ?? all.length) - candidates.length;
  if (left > 0) notes.push(`${format.count(left)} further candidates are not shown.`);
  return h(
    "tr",
    { class: "inside", "data-key": `${decision.id} inside` },
    h("td", { colspan: 9 }, notes.map((note) => h("p", { class: "meta" }, note)), bars(decision, candidates), terms(decision, candidates)),
  );
}

const COLUMNS = ["at", "request", "prompt", "chosen", "runner-up", "reused", "first token", "cached", "answer"];
const NUMBERS = new Set(["prompt", "first token", "cached"]);
const TITLES = {
  "first token": "seconds, predicted → actual",
  cached: "tokens that the engine does not compute, predicted → actual",
  reused: "tokens that the chosen replica need not compute, by where they come from, as predicted",
};

/**
 * @param decisions the newest first.
 * @param open ids of those that are shown with all their candidates.
 * @param all whether to show more than a few.
 */
export function table(decisions, open, all) {
  const shown = decisions.filter(({ id }, place) => all || place < FEW || open.has(id));
  if (!decisions.length) return h("p", { class: "empty" }, "No request was sent yet.");
  return h(
    "table",
    { class: "rows fixed decisions" },
    h("thead", null, h("tr", null, COLUMNS.map((name) => h("th", { scope: "col", class: NUMBERS.has(name) ? "number" : null, title: TITLES[name] }, name, name in TITLES && name !== "reused" ? h("small", null, " pred. → act.") : null)))),
    h("tbody", null, shown.map((one) => [row(one, open.has(one.id)), open.has(one.id) && inside(one)])),
  );
}
