// Follows the service's stream of news, one JSON document a line, and draws what changed.

import { drawBundles, drawStates, stateOf } from "./bundles.js";
import { putWords, refreshTimes } from "./elements.js";
import * as view from "./view.js";
import { counted, percent, visible } from "./words.js";

// After a lost connection; then it is over: a service that is started again listens elsewhere.
const PAUSES_MS = [300, 1000, 3000];
const STEADY_MS = 10000;
const SILENCE_MS = 20000;

const NOTICES = {
  lost: "The service does not answer. Trying again.",
  silent: "The service has not said anything for a while. It may be stopped, or the machine very busy.",
  ended:
    "The service has ended; what you see is from before. Start it with `refit-agent serve`, then run `refit-agent ui`.",
  closed: "This page is closed: its session has run out. Run `refit-agent ui` to open it again.",
  elsewhere: "This page goes on in another tab. To have it here, reload.",
};

const parts = {};
let said = ""; // the notice that is shown
let heard = Date.now();
let ahead = 0; // the service's clock before ours, in seconds: the browser may be on another machine, over ssh

const DRAW = {
  service: () => view.drawService(parts.service),
  jobs: () => {
    view.drawJobs(parts.jobs);
    drawStates(parts.jobs);
  },
  background: () => view.drawBackground(parts.background, parts.bundles),
  errors: () => view.drawErrors(parts.errors),
  machine: () => view.drawMachine(parts.machine),
  cache: () => view.drawCache(parts.cache, parts.service?.cache),
  bundles: () => {
    drawBundles(parts.bundles, parts.jobs);
    if (parts.background) DRAW.background();
  },
};

function take({ part, data }) {
  if (part === "now") {
    ahead = data - Date.now() / 1000;
  } else if (part in DRAW) {
    parts[part] = data;
    DRAW[part]();
    summarize();
  }
  tick();
}

function tick() {
  refreshTimes(Date.now() / 1000 + ahead);
}

function summarize() {
  const [job] = parts.jobs ?? [];
  const choices = (parts.bundles ?? []).flatMap((b) => b.models.flatMap((m) => m.choices));
  const ready = choices.filter((c) => stateOf(c, parts.jobs)[0] === "ready").length;
  const doing = job ? `Making ${visible(job.model)}` : "At rest";
  put("summary", choices.length ? `${doing}. ${ready} of ${counted(choices.length, "engine")} ready.` : `${doing}.`);
  document.title = job ? `${percent(job.fraction)} ${visible(job.model)} · Refit Agent` : "Refit Agent";
}

// A screen reader says again what is put there again.
function put(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}

function say(why) {
  if (why === said) return;
  said = why;
  const notice = document.getElementById("notice");
  notice.hidden = why === "";
  putWords(notice, NOTICES[why] ?? "");
  document.body.classList.toggle("past", why !== "");
  if (why === "" || why === "lost" || why === "silent") return;
  // For good: nothing may look as if it still moved.
  put("summary", "");
  document.title = "Refit Agent (closed)";
  view.drawJobs([]);
  drawStates([]);
  document.getElementById("jobs").closest("section").hidden = true;
}

// Reads one stream to its end and tells why it ended.
async function follow() {
  try {
    const answer = await fetch("events");
    if (answer.status === 403) return "closed";
    if (!answer.ok) return "lost";
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return "lost";
      heard = Date.now();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => JSON.parse(text))) {
        if (line.part === "end") return line.data;
        take(line);
      }
      say("");
    }
  } catch {
    return "lost";
  }
}

async function main() {
  const watch = setInterval(() => {
    tick();
    if (Date.now() - heard > SILENCE_MS) say("silent");
  }, 5000);
  let why = "lost";
  for (let tries = 0; why === "lost" && tries <= PAUSES_MS.length; tries += 1) {
    const begun = Date.now();
    why = await follow();
    if (why !== "lost") break;
    if (Date.now() - begun > STEADY_MS) tries = 0;
    heard = Infinity;
    if (tries < PAUSES_MS.length) {
      say("lost");
      await new Promise((resolve) => setTimeout(resolve, PAUSES_MS[tries]));
    }
  }
  clearInterval(watch);
  say(why === "lost" || why === "stopped" ? "ended" : why);
}

main();
