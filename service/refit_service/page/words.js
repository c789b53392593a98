// Numbers and times in words, and text from bundles and errors made fit to be seen.

const RUNTIMES = {
  tensorrt_lean: "TensorRT lean",
  tensorrt: "TensorRT",
  tensorrt_rtx: "TensorRT-RTX",
  onnxruntime: "ONNX Runtime",
};

// A runtime's name, from that of its Python module.
export function runtime(module) {
  return RUNTIMES[module] ?? module;
}

// What cannot be seen, or would turn the text around it: escaped, so that a name cannot pass for another.
// A line break stays, and what joins letters in some scripts.
const HIDDEN = /(?![\n\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

export function visible(text) {
  return String(text).replace(HIDDEN, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

export function bytes(count) {
  let value = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return unit === "B" ? `${count} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

export function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

export function percent(fraction) {
  return `${Math.floor(fraction * 100)}%`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function ago(seconds) {
  return seconds < 60 ? "just now" : `${duration(seconds)} ago`;
}

// "12 of 300 weights", "1.2 MiB of 3.4 MiB"; nothing for a phase that does not tell.
export function amount(job) {
  if (!job.total) return "";
  if (job.phase === "refit") return `${job.done} of ${counted(job.total, "weight")}`;
  return `${bytes(job.done)} of ${bytes(job.total)}`;
}
