// What the page is put together from. Text gets into it as text alone, never as markup.

import { ago, duration, visible } from "./words.js";

// An element with a class and children: elements, or text from anywhere; what is "" or missing is left out.
export function el(kind, name, ...children) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  made.append(...children.filter((c) => c !== "" && c != null).map((c) => (c instanceof Node ? c : visible(c))));
  return made;
}

// Names and what they stand for; those that stand for nothing are left out.
export function facts(pairs) {
  const rows = pairs.filter(([, value]) => value);
  return el("dl", "facts", ...rows.flatMap(([name, value]) => [el("dt", "", name), el("dd", "", value)]));
}

// Something to unfold, with a key by which `fill` knows it again.
export function folded(key, words, content) {
  const made = el("details", "", el("summary", "", words), content);
  made.dataset.key = key;
  return made;
}

export function fault(error) {
  return el("div", "fault", el("p", "", error.message), el("p", "quiet", error.hint));
}

// Put new content in place; what was unfolded stays so, and the keyboard stays where it was.
export function fill(id, ...children) {
  const root = document.getElementById(id);
  const open = new Set([...root.querySelectorAll("details[open]")].map((d) => d.dataset.key));
  const focused = root.contains(document.activeElement) && document.activeElement.parentElement.dataset.key;
  root.replaceChildren(...children);
  for (const details of root.querySelectorAll("details")) {
    details.open = open.has(details.dataset.key);
    if (details.dataset.key === focused) details.firstElementChild.focus();
  }
}

// Words with commands in backticks, in place of what the element holds.
export function putWords(element, text) {
  element.replaceChildren(...text.split("`").map((part, n) => (n % 2 ? el("code", "", part) : part)));
}

// A moment, with the words that `refreshTimes` puts there and keeps true.
export function moment(when, form = "ago") {
  const made = el("time", "");
  const date = new Date(when * 1000);
  made.dateTime = date.toISOString();
  made.title = date.toLocaleString();
  made.dataset.when = when;
  made.dataset.form = form;
  return made;
}

const FORMS = {
  ago,
  up: duration,
  left: (seconds) => (seconds < 0 ? `in ${duration(-seconds)}` : "soon"),
};

export function refreshTimes(now) {
  for (const time of document.querySelectorAll("time")) {
    const text = FORMS[time.dataset.form](now - Number(time.dataset.when));
    if (time.textContent !== text) time.textContent = text;
  }
}
