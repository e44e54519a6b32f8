// Whether predictions hold, by replica: cached tokens and first tokens.

import { cell } from "./bars.js";
import { h } from "./dom.js";
import * as format from "./format.js";

const COLUMNS = [
  ["first token", "actual over predicted, the mean of the last answers"],
  ["is off by", "how far one answer is from its prediction, either way"],
  ["cached as said", "answers whose cached tokens are what was predicted"],
  ["less", "answers of which fewer tokens were cached than predicted"],
  ["more", "answers of which more tokens were cached than predicted"],
  ["cached / predicted", "tokens of all answers that tell"],
  ["resyncs", "times that its index was made anew because cached tokens disagreed"],
];

function row(replica) {
  const told = replica.accuracy;
  const all = told.cached_as_predicted + told.cached_less + told.cached_more;
  const timed = told.ttft_error > 0;
  const values = [
    timed ? format.factor(told.ttft_bias) : format.NONE,
    timed ? format.factor(told.ttft_error) : format.NONE,
    all ? `${format.share(told.cached_as_predicted / all)} of ${format.count(all)}` : format.NONE,
    format.count(told.cached_less),
    format.count(told.cached_more),
    `${format.count(told.cached_tokens)} / ${format.tokens(told.predicted_tokens)}`,
    format.count(told.resyncs),
  ];
  return h(
    "tr",
    { "data-key": replica.name, class: told.alarm ? "alarmed" : null },
    cell("replica", null, h("b", null, replica.name), told.alarm ? h("span", { class: "mark down" }, " ▲ drift") : null),
    COLUMNS.map(([name], place) => cell(name, { class: "number" }, values[place])),
  );
}

export function table(state) {
  const known = state.replicas.filter((one) => one.accuracy);
  return h(
    "table",
    { class: "rows" },
    h(
      "thead",
      null,
      h("tr", null, h("th", { scope: "col" }, "replica"), COLUMNS.map(([name, title]) => h("th", { scope: "col", class: "number", title }, name))),
    ),
    h("tbody", null, known.map(row)),
  );
}
