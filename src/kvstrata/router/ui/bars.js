// Stacked bars, and the legends of their hues.

import { h } from "./dom.js";

/**
 * A bar of parts side by side.
 * @param parts `{hue, pale, other, size, text}`; parts without a size are left out. Pale is one meaning of a
 *   hue, and other is only the neighbour of its like.
 * @param whole what the bar's full length stands for, in the parts' unit.
 * @param told what the bar says, for those who do not see it.
 */
export function stack(parts, whole, told) {
  const shown = parts.filter(({ size }) => size > 0);
  return h(
    "span",
    { class: "stack", role: "img", "aria-label": told },
    shown.map(({ hue, pale, other, size, text }) =>
      h("span", {
        class: `part hue-${hue}${pale ? " pale" : ""}${other ? " other" : ""}`,
        style: { width: `${((100 * size) / Math.max(whole, 1e-12)).toFixed(2)}%` },
        title: text,
      }),
    ),
  );
}

export const swatch = (hue, pale) => h("span", { class: `swatch hue-${hue}${pale ? " pale" : ""}`, "aria-hidden": "true" });

/** Names of hues; `entries` are `{hue, pale, label, value}`. */
export const legend = (entries) =>
  h(
    "ul",
    { class: "legend" },
    entries.map(({ hue, pale, label, value }) =>
      h("li", null, swatch(hue, pale), h("span", null, label), value === undefined ? null : h("b", null, value)),
    ),
  );

/** A table's cell that tells its column's name where the table is narrow. */
export const cell = (name, attributes, ...children) =>
  h("td", { ...attributes, "data-name": name }, ...children);
