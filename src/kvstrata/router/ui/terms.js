// What decisions are made of: tiers, and the terms of a cost in seconds. Colours are in style.css.

/** Where a prompt's KV can come from, the quickest first; `id` names the hue everywhere on the page. */
export const SOURCES = [
  { id: "device", label: "device" },
  { id: "memory", label: "memory" },
  { id: "storage", label: "storage" },
  { id: "computed", label: "computed" },
];

export const TIERS = SOURCES.slice(0, 3);

/** Seconds that add up; `pale` is the lighter of two terms with one hue. */
export const TERMS = [
  { key: "wait", label: "wait", hue: "wait", told: "until the prompts before it are computed" },
  { key: "overhead", label: "overhead", hue: "wait", pale: true, told: "that every request pays" },
  { key: "storage_latency", label: "storage latency", hue: "storage", pale: true, told: "of reads from storage" },
  { key: "storage_transfer", label: "storage bytes", hue: "storage", told: "of reads from storage" },
  { key: "memory_latency", label: "memory latency", hue: "memory", pale: true, told: "of the load into the device" },
  { key: "memory_transfer", label: "memory bytes", hue: "memory", told: "of the load into the device" },
  { key: "compute", label: "compute", hue: "computed", told: "of the tokens left" },
  { key: "attention", label: "attention", hue: "computed", pale: true, told: "what the tokens left look back at" },
  { key: "doubt", label: "doubt", hue: "other", told: "what is lost if the index is wrong, times how likely that is" },
  { key: "fault", label: "fault", hue: "other", pale: true, told: "set on replicas that failed lately" },
  { key: "burden", label: "burden", hue: "burden", told: "what its computation takes from those behind it" },
];

const BEYOND = new Set(["doubt", "fault", "burden"]);

/** Seconds to the first token; null where the policy knows no seconds. */
export function firstToken(appraisal) {
  const terms = appraisal?.terms;
  if (!terms) return null;
  let sum = -(terms.overlap ?? 0);
  for (const { key } of TERMS) if (!BEYOND.has(key)) sum += terms[key] ?? 0;
  return sum > 0 ? sum : null;
}

/** All that adds up, before what overlaps is taken off. */
export const gross = (terms) => TERMS.reduce((sum, { key }) => sum + Math.max(terms?.[key] ?? 0, 0), 0);

export const appraisalOf = (decision, replica) =>
  decision.considered.find((one) => one.replica === replica) ?? null;

/** Tokens of a prompt by where they come from, as it was foreseen for one replica. */
export function foreseen(appraisal, tokens) {
  const reused = Math.min(appraisal?.tokens ?? 0, tokens);
  const device = Math.min(appraisal?.device_tokens ?? 0, reused);
  const found = { device, memory: 0, storage: 0, computed: Math.max(tokens - reused, 0) };
  const loaded = reused - device;
  if (appraisal?.source === "memory") found.memory = loaded;
  else if (appraisal?.source === "storage") {
    const moved = appraisal.memory_bytes + appraisal.storage_bytes;
    const reached = (appraisal.reuse?.memory.tokens ?? 0) - device;
    const ofMemory = moved ? appraisal.memory_bytes / moved : Math.min(Math.max(reached / Math.max(loaded, 1), 0), 1);
    found.memory = Math.round(loaded * ofMemory);
    found.storage = loaded - found.memory;
  } else found.device = reused;
  return found;
}

/** The last tier that a replica's boundary needs, as the name of a hue. */
export const sourceOf = (appraisal) =>
  TIERS.some(({ id }) => id === appraisal?.source) ? appraisal.source : "computed";
