// The parts of the page but the bundles, each drawn from its document.

import { el, facts, fault, fill, moment } from "./elements.js";
import { amount, bytes, counted, duration, percent, runtime, visible } from "./words.js";

// ---------------------------------------------------------------- in the making

// Elements stay from one event to the next, so that a bar moves and is no new bar each time.
const items = new Map();

export function drawJobs(jobs) {
  const root = document.getElementById("jobs");
  const seen = new Set();
  for (const [place, job] of jobs.entries()) {
    const id = `${job.key} ${job.model} ${job.since}`;
    seen.add(id);
    if (!items.has(id)) items.set(id, newJob(job));
    const { item, update } = items.get(id);
    update(job);
    if (root.children[place] !== item) root.insertBefore(item, root.children[place] ?? null);
  }
  for (const [id, { item }] of items) {
    if (seen.has(id)) continue;
    item.remove();
    items.delete(id);
  }
  document.getElementById("no-jobs").hidden = jobs.length > 0;
}

function newJob(job) {
  const app = el("span", "quiet");
  const share = el("span", "share");
  const bar = el("progress", "");
  const step = el("p", "step");
  const who = el("p", "quiet small");
  bar.max = 1;
  bar.setAttribute("aria-label", `Making ${visible(job.model)}`);
  const update = (now) => {
    const waits = now.phase === "queue";
    const left = now.eta_s == null ? "" : `about ${duration(now.eta_s)} left`;
    const steps = waits ? ["waits for its turn"] : [now.text || now.phase, amount(now), left];
    const whom = now.background ? "in the background" : `${counted(now.waiters, "caller")} waiting`;
    app.textContent = visible(now.app);
    share.textContent = waits ? "" : percent(now.fraction);
    bar.hidden = waits;
    bar.value = now.fraction;
    step.textContent = joined(steps);
    who.textContent = joined([now.engine, now.target, whom]);
  };
  return { item: el("li", "job", el("div", "line", el("h3", "", job.model), app, share), bar, step, who), update };
}

function joined(parts) {
  return parts.filter(Boolean).map(visible).join(" · ");
}

export function drawBackground(work, bundles) {
  const names = new Map((bundles ?? []).map((b) => [b.record.path, b.record.name]));
  const words = {
    idle: "Background work: nothing to do.",
    working: "Background work: making what registered bundles need.",
    paused: `Background work is paused: ${work.reason}.`,
  };
  const failed = work.failures.map((one) => failure(one, names.get(one.bundle) ?? one.bundle));
  const list = [el("p", "quiet", "Could not be made in the background:"), el("ul", "plain", ...failed)];
  fill("background", el("p", "quiet", words[work.state] ?? work.state), ...(failed.length ? list : []));
}

function failure({ model, target, code, message, tries, not_before }, app) {
  const named = model ? [el("h3", "", model), el("span", "quiet", app)] : [el("h3", "", app)];
  const head = el("div", "line", ...named, el("span", "quiet", target), el("code", "tag", code));
  const again = el("p", "quiet small", `tried ${counted(tries, "time")}, again `, moment(not_before, "left"));
  return el("li", "failure", head, el("p", "message", message), again);
}

// ---------------------------------------------------------------- errors, machine, cache, service

export function drawErrors(errors) {
  const lines = errors.map(({ code, when, message }) => {
    const head = el("div", "line", el("code", "tag", code), el("span", "quiet small", moment(when)));
    return el("li", "", head, el("p", "message", message));
  });
  const none = el("p", "quiet", "None since the service began.");
  fill("errors", lines.length ? el("ol", "plain errors", ...lines) : none);
}

export function drawMachine(machine) {
  if (machine.error) {
    fill("machine", fault(machine.error));
    return;
  }
  const none = machine.no_gpu_reason ? `No GPU: ${machine.no_gpu_reason}` : "No GPU";
  const runtimes = machine.runtimes.map((r) => {
    const major = r.cuda_major ? ` CUDA ${r.cuda_major}` : "";
    const folder = r.folder ? el("p", "path small quiet", r.folder) : "";
    return el("li", "", `${runtime(r.module)} ${r.version}`, el("span", "quiet small", major), folder);
  });
  fill(
    "machine",
    machine.gpus.length ? el("ul", "plain", ...machine.gpus.map(gpu)) : el("p", "", none),
    ...machine.warnings.map((words) => el("p", "fault", words)),
    facts([
      ["System", `${machine.os} ${machine.arch}`],
      ["Driver", machine.driver && `${machine.driver}${machine.cuda ? `, CUDA up to ${machine.cuda}` : ""}`],
      ["Runtimes", runtimes.length ? el("ul", "plain", ...runtimes) : "none is installed"],
    ]),
  );
}

function gpu({ name, index, compute_capability, memory_total, mig }) {
  const memory = memory_total ? bytes(memory_total) : "";
  const more = [`cuda:${index}`, `compute capability ${compute_capability}`, memory, mig ? "MIG slice" : ""];
  return el("li", "", el("h3", "", name), el("p", "quiet small", joined(more)));
}

export function drawCache(cache, folder) {
  if (cache.error) {
    fill("cache", fault(cache.error));
    return;
  }
  const words = `${bytes(cache.bytes)} of ${bytes(cache.quota)}, ${counted(cache.entries, "engine")}`;
  const bar = el("meter", "");
  bar.max = Math.max(cache.quota, 1);
  bar.value = cache.bytes;
  bar.setAttribute("aria-label", "Cache in use");
  bar.setAttribute("aria-valuetext", words);
  fill("cache", bar, el("p", "", words), el("p", "path small quiet", folder));
}

export function drawService(service) {
  document.getElementById("version").textContent = visible(service.version);
  fill(
    "service",
    facts([
      ["Running for", moment(service.started, "up")],
      ["Process", String(service.pid)],
      ["State, logs", el("span", "path", service.state)],
    ]),
  );
}
