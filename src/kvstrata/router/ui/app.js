// The page: what is read is shown, and clicks open things. All views are functions of the state.

import * as answers from "./answers.js";
import * as decisions from "./decisions.js";
import { show } from "./dom.js";
import * as format from "./format.js";
import * as overview from "./overview.js";
import { decision, key, Reading } from "./reading.js";
import * as replicas from "./replicas.js";
import { Points, scatter } from "./scatter.js";

const at = (id) => document.getElementById(id);
const points = new Points();
const open = { decision: new Set(), replica: new Set() };
/** Candidates of decisions that are open: the state tells all only where they are few. */
const whole = new Map();
let all = false;
let last = null;
let seen = null;

async function complete(id) {
  whole.set(id, null);
  const found = await decision(id);
  if (found === null) return;
  whole.set(id, found.considered);
  draw();
}

function withAll(one) {
  if (!open.decision.has(one.id) || one.considered.length >= one.candidates) return one;
  if (!whole.has(one.id)) complete(one.id);
  return { ...one, considered: whole.get(one.id) ?? one.considered };
}

function draw() {
  const state = last;
  show(at("line"), overview.line(state));
  const alarms = overview.alarms(state);
  show(at("alarms"), alarms);
  at("alarms").hidden = !alarms.length;
  show(at("tokens"), overview.tokens(state));
  show(at("replicas"), replicas.table(state, open.replica));
  show(at("decisions"), decisions.table(state.decisions.map(withAll), open.decision, all));
  at("all").hidden = state.decisions.length <= decisions.FEW;
  at("all").textContent = all ? `Show the newest ${decisions.FEW}` : `Show all ${state.decisions.length}`;
  at("all").setAttribute("aria-expanded", String(all));
  show(at("scatter"), scatter(points.all));
  show(at("answers"), answers.table(state));
  show(at("learned"), replicas.learned(state));
}

function banner(text) {
  const place = at("banner");
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
  document.body.classList.toggle("old", Boolean(text));
}

/** A decision that someone looks at stays, even when newer ones have taken its place. */
function keepOpen(state, before) {
  const there = new Set(state.decisions.map(({ id }) => id));
  for (const one of before?.decisions ?? []) {
    if (open.decision.has(one.id) && !there.has(one.id)) state.decisions.push(one);
  }
}

function take(found) {
  at("ask").hidden = found.kind !== "key";
  at("main").hidden = found.kind === "key" || (last === null && found.kind !== "state");
  if (found.kind === "key") {
    banner("");
    at("asked").textContent = found.refused ? `That key is not the router's. ${found.message}` : found.message;
    at("key").focus();
  } else if (found.kind === "gone") {
    const since = seen === null ? "" : ` What is shown is of ${format.clock(seen)}.`;
    banner(`${found.message}${since}`);
  } else {
    keepOpen(found.state, last);
    last = found.state;
    seen = last.router.now;
    points.take(last.decisions);
    banner("");
    draw();
  }
}

const reading = new Reading(take);

at("main").addEventListener("click", (event) => {
  const row = event.target.closest("tr.row");
  // Whoever marks text to copy it does not want it to move.
  if (!row || !getSelection().isCollapsed) return;
  const kind = "decision" in row.dataset ? "decision" : "replica";
  const name = row.dataset[kind];
  whole.delete(name);
  if (!open[kind].delete(name)) open[kind].add(name);
  draw();
});

at("all").addEventListener("click", () => {
  all = !all;
  draw();
});

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(at("key").value);
  at("key").value = "";
  reading.again();
});

at("pause").addEventListener("click", () => {
  reading.on = !reading.on;
  at("pause").setAttribute("aria-pressed", String(!reading.on));
  at("pause").textContent = reading.on ? "Pause" : "Go on";
});

reading.again();
