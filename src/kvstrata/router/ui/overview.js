// What concerns the whole fleet: the line at the top, alarms, and where prompts' tokens came from.

import { legend, stack } from "./bars.js";
import { h } from "./dom.js";
import * as format from "./format.js";
import { SOURCES } from "./terms.js";

const entry = (name, value, told) => h("div", { title: told }, h("dt", null, name), h("dd", null, value));

export function line(state) {
  const router = state.router;
  const up = state.replicas.filter((one) => one.state === "up").length;
  return [
    entry("policy", router.policy, "how a replica is chosen"),
    entry("replicas up", `${up} of ${state.replicas.length}`),
    entry("in flight", format.count(router.in_flight), "requests that replicas have now"),
    entry("waiting", format.count(router.waiting), "requests that wait for a replica to have room"),
    entry("clients", format.count(router.connections), "connections, this page's among them"),
    entry("bodies", format.bytes(router.buffered_bytes), "bytes of the requests held now"),
    entry("up", format.long(router.now - router.started)),
    entry("version", router.version),
  ];
}

const DRIFT = {
  less: (share) => `${share} of what its index promised lately was computed after all. Its word counts for less`,
  more: (share) => `${share} of its answers lately had cached what its index does not know of. The index stays in use`,
};

function drift(replica) {
  const { alarm_of: kind, claims_broken: less, finds_unforeseen: more, resyncs } = replica.accuracy;
  const told = DRIFT[kind] ?? (() => "cached tokens disagree with its index. It stays in use");
  const again = resyncs ? `; it was made anew ${format.count(resyncs)}×.` : ".";
  return told(format.share(kind === "more" ? more : less)) + again;
}

export function alarms(state) {
  const found = [];
  for (const replica of state.replicas) {
    if (replica.state === "down") found.push([replica.name, `down: ${replica.why || "it does not answer"}.`]);
    if (replica.accuracy?.alarm) found.push([replica.name, drift(replica)]);
  }
  return found.map(([name, text]) =>
    h("p", { class: "alarm" }, h("span", { "aria-hidden": "true" }, "▲ "), h("b", null, name, ": "), text),
  );
}

export function tokens(state) {
  const parts = SOURCES.map(({ id, label }) => ({ hue: id, label, size: state.tokens[id] ?? 0 }));
  const all = parts.reduce((sum, { size }) => sum + size, 0);
  for (const part of parts) {
    part.value = all ? `${format.tokens(part.size)} · ${format.share(part.size / all)}` : format.tokens(part.size);
    part.text = `${part.label}: ${part.value}`;
  }
  const told = parts.map(({ text }) => text).join(", ");
  return h("div", { class: "tokens" }, stack(parts, all, told), legend(parts));
}
