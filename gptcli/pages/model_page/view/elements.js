/* Builds HTML elements, and formats numbers and tokens for readers. */

/** A new HTML element with attributes and children (elements or text). The tag can have a class:
    "li.panel". */
function element(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  made.classList.add(...classes);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

const byId = (id) => document.getElementById(id);

/** A share as a percentage: "45 %", "3.2 %", "< 0.1 %". */
function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value < 9.95 && value > 0 ? value.toFixed(1) : Math.round(value)} %`;
}

/** A count with its noun in the singular or plural: "1 token", "3 tokens". */
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** A number with two decimals and a real minus sign. */
const number = (value) => value.toFixed(2).replace("-", "\u2212");

/** A bar that fills `share` (0 to 1) of the width of the element around it. */
function fill(share) {
  const made = element("span.fill");
  made.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return made;
}

const BLANKS = { " ": "\u2423", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d" };

/** A token's bytes as text with visible blanks: a space becomes U+2423. If the bytes are not valid
    UTF-8, all of them are shown in hexadecimal. */
function visible(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    return (
      text.replace(/[ \n\t\r]/g, (blank) => BLANKS[blank]).replace(/\p{C}/gu, "\ufffd") || "\u2205"
    );
  } catch {
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  }
}

/** A token as words for screen readers and sentences, such as "space". */
function spoken(bytes) {
  const names = { " ": "space", "\n": "line end", "\t": "tab", "\r": "carriage return" };
  const text = new TextDecoder().decode(bytes);
  return names[text] ?? `\u201c${visible(bytes)}\u201d`;
}

/** A token in a box. */
const piece = (bytes) => element("span.piece", {}, visible(bytes));

const SVG = "http://www.w3.org/2000/svg";

/** A picture of numbers: bars above and below a line, with the caption `what`. Marks the bars from
    index inside[0] to inside[1] - 1. */
function vector(what, numbers, inside = null) {
  const top = Math.max(1e-9, ...numbers.map(Math.abs));
  const svg = document.createElementNS(SVG, "svg");
  const add = (tag, attributes) => {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    svg.append(made);
  };
  const low = Math.min(...numbers);
  const high = Math.max(...numbers);
  svg.setAttribute("viewBox", `0 0 ${numbers.length} 40`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute(
    "aria-label",
    `${what}: ${counted(numbers.length, "number")} from ${number(low)} to ${number(high)}`,
  );
  add("line", { x1: 0, x2: numbers.length, y1: 20, y2: 20 });
  numbers.forEach((value, i) => {
    const height = (Math.abs(value) / top) * 18;
    const outside = inside && (i < inside[0] || i >= inside[1]);
    add("rect", {
      x: i + 0.12,
      width: 0.76,
      y: value > 0 ? 20 - height : 20,
      height,
      ...(outside ? { class: "outside" } : {}),
    });
  });
  if (inside)
    add("rect", {
      class: "window",
      x: inside[0],
      width: inside[1] - inside[0],
      y: 0.5,
      height: 39,
    });
  const first = numbers
    .slice(inside ? inside[0] : 0)
    .slice(0, 3)
    .map(number)
    .join(", ");
  return element(
    "div.vector",
    {},
    element(
      "div.what",
      {},
      element("span", {}, what),
      element("span", {}, `${first}${numbers.length > 3 ? ", ..." : ""} (${numbers.length})`),
    ),
    svg,
  );
}
