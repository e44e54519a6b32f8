// Asks the router for its state once a second, while the page is seen.

const PAUSE = 1000;
const LONGEST = 5000;
const KEY = "kvstrata-admin-key";

/** The admin key, kept until the tab is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  drop: () => sessionStorage.removeItem(KEY),
};

async function text(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The router answers ${answer.status}.`;
  }
}

const ask = (path) =>
  fetch(path, {
    headers: key.get() ? { authorization: `Bearer ${key.get()}` } : {},
    cache: "no-store",
    signal: AbortSignal.timeout(LONGEST),
  });

/** All of one decision; null when it is forgotten or the router does not answer. */
export async function decision(id) {
  try {
    const answer = await ask(`admin/decisions/${encodeURIComponent(id)}`);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** `{kind, ...}`: "state" with `state`, "key" with `message` (one is wanted), or "gone" with `message`. */
export async function read() {
  const shown = key.get();
  if (shown !== null && !/^[\x21-\x7e]+$/.test(shown)) {
    // No header can carry it.
    key.drop();
    return { kind: "key", message: "A key has letters, digits and signs of ASCII only.", refused: true };
  }
  try {
    const answer = await ask("admin/state");
    if (answer.status === 401 || answer.status === 403) {
      key.drop();
      return { kind: "key", message: await text(answer), refused: shown !== null };
    }
    if (!answer.ok) return { kind: "gone", message: await text(answer) };
    return { kind: "state", state: await answer.json() };
  } catch (error) {
    const late = error.name === "TimeoutError";
    return { kind: "gone", message: late ? "The router is silent." : "The router does not answer." };
  }
}

/** Reads again and again, and gives every result to `take`. */
export class Reading {
  #take;
  #timer = null;
  #turn = 0;
  #on = true;

  constructor(take) {
    this.#take = take;
    document.addEventListener("visibilitychange", () => this.again());
  }

  /** Whether it goes on. */
  get on() {
    return this.#on;
  }

  set on(value) {
    this.#on = value;
    this.again();
  }

  /** Read now, and then go on. */
  async again() {
    clearTimeout(this.#timer);
    const turn = ++this.#turn;
    if (!this.#on || document.hidden) return;
    const found = await read();
    // Something else has begun meanwhile, and reads for itself.
    if (turn !== this.#turn) return;
    this.#take(found);
    if (found.kind !== "key") this.#timer = setTimeout(() => this.again(), PAUSE);
  }
}
