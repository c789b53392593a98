// The registered bundles: for each model the engine that this machine gets, and why.

import { el, facts, fault, fill, folded } from "./elements.js";
import { counted, percent, runtime } from "./words.js";

const SIGNS = { ready: "✓", making: "◐", waiting: "◔", missing: "○", failed: "✕", unfit: "–" };

// Kind and words of what has become of a choice.
export function stateOf(choice, jobs) {
  if (choice.chosen === null) return ["failed", "failed"];
  const job = (jobs ?? []).find((j) => j.key !== "" && j.key === choice.chosen.key);
  if (job && job.phase === "queue") return ["waiting", "waits for its turn"];
  if (job) return ["making", `being made, ${percent(job.fraction)}`];
  return choice.chosen.cached ? ["ready", "ready"] : ["missing", "not made yet"];
}

function mark(element, [kind, words]) {
  element.className = `state ${kind}`;
  element.replaceChildren(el("span", "sign", SIGNS[kind]), words);
  element.firstChild.setAttribute("aria-hidden", "true");
}

let marks = [];

// Only the states: jobs move several times a second, and a bundle's text does not.
export function drawStates(jobs) {
  for (const [element, choice] of marks) mark(element, stateOf(choice, jobs));
}

export function drawBundles(bundles, jobs) {
  marks = [];
  const command = el("code", "", "refit-agent register");
  const none = el("p", "quiet", "No bundle is registered. An app or its installer does it with ", command, ".");
  fill("bundles", ...(bundles.length ? bundles.map(bundle) : [none]));
  drawStates(jobs);
}

function bundle({ record, models, error }) {
  const head = el("div", "line", el("h3", "", record.name), el("span", "quiet", record.version));
  const where = el("p", "quiet small", record.app, " · ", el("span", "path", record.path));
  const rows = models.map((one, n) => model(one, `${record.id} ${n}`));
  return el("article", "card", head, where, error ? fault(error) : el("ul", "plain models", ...rows));
}

function model({ name, choices, refusals, error }, key) {
  const title = el("h4", "", name);
  const reasons = list(refusals);
  if (error) return el("li", "", title, fault(error));
  if (choices.length === 0) {
    const state = el("span", "");
    mark(state, ["unfit", "nothing fits this machine"]);
    return el("li", "", el("div", "line", title, state), reasons);
  }
  const rows = choices.map((choice, n) => oneChoice(choice, `${key} ${n}`, n === 0 ? title : ""));
  return el("li", "", ...rows, refusals.length ? folded(`${key} no`, "Why not the others", reasons) : "");
}

// Engines with the reason of each, and the targets that it holds for.
function list(reasons) {
  const line = ({ engine, targets, reason }) => {
    const whom = targets.length ? ` for ${targets.join(", ")}` : "";
    return el("li", "", el("span", "path", engine), whom, ": ", el("span", "message", reason));
  };
  return el("ul", "reasons", ...reasons.map(line));
}

// What one kind of GPU, or the CPU, gets; `title` stands beside the state of the first.
function oneChoice({ chosen, attempts, rest }, key, title) {
  const state = el("span", "");
  marks.push([state, { chosen }]);
  const head = el("div", "line", title, state);
  const tried = list(attempts.map((a) => ({ engine: a.engine, targets: [a.target], reason: a.message })));
  const words = chosen ? "Passed over, since it failed before:" : "Failed before, and is not tried again for now:";
  const passed = attempts.length ? el("div", "fault", el("p", "", words), tried) : "";
  if (chosen === null) return el("div", "choice", head, passed);
  const engine = el("span", "", el("span", "path", chosen.engine), " ", el("code", "tier quiet", chosen.tier));
  const where = chosen.gpu ? `${chosen.gpu} (${chosen.target})` : "the CPU";
  const by = `${runtime(chosen.module)} ${chosen.module_version}`;
  const table = facts([["Engine", engine], ["Runs on", `${where}, ${by}`], ["Why", chosen.reason]]);
  return el("div", "choice", head, table, passed, others(rest, key));
}

function others(rest, key) {
  if (rest.length === 0) return "";
  const noted = (r) => r.reason + (r.cached ? " (in the cache)" : "");
  const reasons = list(rest.map((r) => ({ engine: r.engine, targets: [r.target], reason: noted(r) })));
  return folded(`${key} rest`, `${counted(rest.length, "engine")} would do as well`, reasons);
}
