// Replicas: how they are, what they hold by tier and group, and what was learned of them.

import { cell, stack, swatch } from "./bars.js";
import { h } from "./dom.js";
import * as format from "./format.js";
import { TIERS } from "./terms.js";

const MARKS = { up: "●", new: "○", suspect: "◐", leaving: "◌", down: "▲" };
const TRUST = { synced: "●", "catching up": "◐", stale: "○" };

const mark = (kind, sign, text, why) =>
  h(
    "span",
    { class: `mark ${kind.replaceAll(" ", "-")}`, title: why || null },
    h("span", { "aria-hidden": "true" }, sign, " "),
    text,
  );

const held = (replica, tier) => (replica.index?.holds ?? []).filter((one) => one.tier === tier);
const sum = (holds, what) => holds.reduce((total, one) => total + one[what], 0);

/** For each tier: whether bars are of bytes or tokens, and the most that a replica holds. */
function scales(replicas) {
  return Object.fromEntries(
    TIERS.map(({ id }) => {
      const all = replicas.map((one) => held(one, id));
      const unit = all.some((holds) => sum(holds, "bytes") > 0) ? "bytes" : "tokens";
      return [id, { unit, most: Math.max(0, ...all.map((holds) => sum(holds, unit))) }];
    }),
  );
}

function kindOf(replica, group) {
  const found = replica.index?.groups.find((one) => one.group === group);
  if (!found) return `group ${group}`;
  const window = found.window ? `, window ${format.tokens(found.window)}` : "";
  return `group ${group} · ${found.kind}${window}, blocks of ${format.tokens(found.block_tokens)}`;
}

const amount = (one) => `${format.tokens(one.tokens)}${one.bytes ? `, ${format.bytes(one.bytes)}` : ""}`;

function tierCell(replica, { id, label }, scale) {
  const holds = held(replica, id);
  if (!replica.index) return cell(label, null, h("span", { class: "faint" }, "not known"));
  if (!holds.length) return cell(label, null, h("span", { class: "faint" }, "nothing"));
  const parts = holds.map((one, place) => ({
    hue: id,
    other: place % 2 === 1,
    size: one[scale.unit],
    text: `${kindOf(replica, one.group)}: ${amount(one)}`,
  }));
  const total = sum(holds, "bytes");
  const longest = Math.max(...holds.map((one) => one.tokens));
  return cell(
    label,
    { class: "held" },
    stack(parts, scale.most, `${label}: ${parts.map(({ text }) => text).join("; ")}`),
    h(
      "span",
      { class: "numbers", title: "tokens of its longest group; bytes of all" },
      h("b", null, format.tokens(longest)),
      total ? ` ${format.bytes(total)}` : "",
    ),
  );
}

function indexCell(index) {
  if (!index) return cell("index", null, h("span", { class: "faint" }, "none kept"));
  const notes = [];
  if (index.age_seconds > 0) notes.push(`for ${format.long(index.age_seconds)}`);
  if (index.behind > 0) notes.push(`${format.count(index.behind)} batches behind`);
  if (index.ranks > 1) notes.push(`${format.count(index.ranks)} ranks`);
  return cell(
    "index",
    null,
    mark(index.trust, TRUST[index.trust] ?? "?", index.trust, index.why),
    h("span", { class: "note" }, notes.join(", ") || (index.why ? "" : "nothing missing")),
  );
}

function queueCell(replica) {
  const wait = replica.learned?.wait_seconds;
  const engine =
    replica.running === null
      ? "engine does not tell"
      : `${format.count(replica.running)} running, ${format.count(replica.waiting)} waiting`;
  return cell(
    "queue",
    { title: "requests of this router there; the engine's own queue; the wait that is expected" },
    h("b", null, format.count(replica.in_flight)),
    " in flight",
    h("span", { class: "note" }, engine, wait > 0 ? `, wait ${format.seconds(wait)}` : ""),
  );
}

function groups(replica) {
  const holds = replica.index?.holds ?? [];
  const why = [replica.why, replica.index?.why].filter(Boolean);
  const rows = (replica.index?.groups ?? []).map((group) =>
    h(
      "tr",
      null,
      h("th", { scope: "row" }, kindOf(replica, group.group)),
      TIERS.map(({ id, label }) => {
        const one = holds.find((hold) => hold.tier === id && hold.group === group.group);
        const text = one ? `${format.count(one.blocks)} blocks, ${amount(one)}` : format.NONE;
        return cell(label, { class: "number" }, text);
      }),
    ),
  );
  return h(
    "tr",
    { class: "inside", "data-key": `${replica.name} inside` },
    h(
      "td",
      { colspan: 7 },
      h("p", { class: "meta" }, replica.url, " · ", replica.models?.join(", ") ?? "models not known"),
      why.map((text) => h("p", { class: "meta" }, text)),
      rows.length
        ? h(
            "div",
            { class: "wide", tabindex: "0", role: "region", "aria-label": `Groups of ${replica.name}` },
            h(
              "table",
              { class: "terms" },
              h("thead", null, h("tr", null, h("th", { scope: "col" }, "group"), TIERS.map(tierHead))),
              h("tbody", null, rows),
            ),
          )
        : h("p", { class: "meta" }, "Its groups are not known: it tells neither facts nor events."),
    ),
  );
}

const tierHead = ({ id, label }) => h("th", { scope: "col" }, swatch(id), label);

export function table(state, open) {
  const scale = scales(state.replicas);
  if (!state.replicas.length) return h("p", { class: "empty" }, "There are no replicas.");
  return h(
    "table",
    { class: "rows fixed replicas" },
    h(
      "thead",
      null,
      h("tr", null, ["replica", "state", "queue", "index"].map((name) => h("th", { scope: "col" }, name)), TIERS.map(tierHead)),
    ),
    h(
      "tbody",
      null,
      state.replicas.map((replica) => {
        const opened = open.has(replica.name);
        return [
          h(
            "tr",
            { class: "row", "data-key": replica.name, "data-replica": replica.name },
            cell("replica", null, h("button", { type: "button", class: "opens", "aria-expanded": String(opened) }, replica.name)),
            cell("state", null, mark(replica.state, MARKS[replica.state] ?? "?", replica.state, replica.why)),
            queueCell(replica),
            indexCell(replica.index),
            TIERS.map((tier) => tierCell(replica, tier, scale[tier.id])),
          ),
          opened && groups(replica),
        ];
      }),
    ),
  );
}

const LEARNED = [
  ["overhead", "overhead_seconds", format.seconds],
  ["prefill", "prefill_tokens_per_s", (value) => `${format.tokens(value)}/s`],
  ["attention doubles at", "attention_doubles_at", format.tokens],
  ["memory latency", "memory_latency_seconds", format.seconds],
  ["memory", "memory_bytes_per_s", format.speed],
  ["storage latency", "storage_latency_seconds", format.seconds],
  ["storage", "storage_bytes_per_s", format.speed],
  ["waits are", "wait_factor", (value) => `×${value.toFixed(2)}`],
  ["requests", "requests", format.count],
];

export function learned(state) {
  const known = state.replicas.filter((one) => typeof one.learned?.prefill_tokens_per_s === "number");
  if (!known.length) {
    return h("p", { class: "empty" }, `Nothing: the policy ${state.router.policy} has nothing to learn, or no request was answered.`);
  }
  return h(
    "table",
    { class: "rows" },
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "replica"), LEARNED.map(([name]) => h("th", { scope: "col", class: "number" }, name)))),
    h(
      "tbody",
      null,
      known.map((one) =>
        h(
          "tr",
          { "data-key": one.name },
          cell("replica", null, h("b", null, one.name)),
          LEARNED.map(([name, key, told]) =>
            cell(name, { class: "number", title: key === "requests" ? `${format.count(one.learned.outliers)} of them outliers` : null }, typeof one.learned[key] === "number" ? told(one.learned[key]) : format.NONE),
          ),
        ),
      ),
    ),
  );
}
