// Which answers are being written? One at most in each conversation; they go on while another is
// shown. The answer's object is changed in place and its owner told.

import { listModels, streamChat, Trouble } from "./api.js";
import { saveConversation, toRequest } from "./store.js";

/** How often a growing answer is kept, and how often we look why nothing has come yet. */
const KEEP_MS = 2000;
const LOOK_MS = 700;

export class Answering {
  constructor(changed) {
    this.changed = changed;
    this.running = new Map();
  }

  isRunning(id) {
    return this.running.has(id);
  }

  stop(id) {
    this.running.get(id)?.control.abort();
  }

  /** The page is about to go: what has come so far stays. */
  keepAll() {
    for (const { conversation } of this.running.values()) {
      saveConversation(conversation);
    }
  }

  start(conversation, message, models) {
    const before = message === null ? conversation.messages : conversation.messages.slice(0, -1);
    const body = toRequest(conversation, before);
    const model = conversation.model || models[0]?.id || "default";
    const answer = { text: "", thinking: "", model, note: "", ended: "", status: "Asking" };
    if (message === null) {
      conversation.messages.push({ role: "assistant", answers: [answer], shown: 0 });
    } else {
      message.answers.push(answer);
      message.shown = message.answers.length - 1;
    }
    const control = new AbortController();
    this.running.set(conversation.id, { conversation, control });
    this.run(conversation, body, answer, control);
  }

  async run(conversation, body, answer, control) {
    const clock = { asked: performance.now(), first: null, last: null, usage: null, kept: 0 };
    const draw = onceAFrame(() => this.changed(conversation, answer));
    const looking = setInterval(() => this.look(answer, clock, control.signal, draw), LOOK_MS);
    try {
      await streamChat(body, control.signal, (heard) => {
        hear(answer, heard, clock);
        if (performance.now() - clock.kept > KEEP_MS) {
          clock.kept = performance.now();
          saveConversation(conversation);
        }
        draw();
      });
      answer.ended ||= "stop";
    } catch (error) {
      end(answer, error);
    } finally {
      clearInterval(looking);
    }
    answer.note = noteOf(clock, answer);
    answer.status = "";
    // A newer answer may have taken its place meanwhile.
    if (this.running.get(conversation.id)?.control === control) {
      this.running.delete(conversation.id);
    }
    draw.now();
  }

  /** Nothing has come yet: is the model being loaded, or are others before us? */
  async look(answer, clock, signal, draw) {
    if (clock.first !== null) {
      return;
    }
    let models;
    try {
      models = await listModels(signal);
    } catch {
      return;
    }
    const model = models.find((candidate) => candidate.id === answer.model) ?? models[0];
    if (clock.first === null && model && !signal.aborted) {
      answer.status = statusOf(model);
      draw();
    }
  }
}

function statusOf(model) {
  if (model.state === "loading" || model.state === "unloaded") {
    return `${model.id} is being loaded`;
  }
  const queue = model.queue ?? {};
  if (queue.waiting > 0) {
    const seconds = Math.ceil(queue.newcomer_seconds ?? 0);
    const wait = seconds > 1 ? `, about ${seconds} s` : "";
    return `Waiting for a place (${queue.waiting} in the queue${wait})`;
  }
  return "Reading";
}

function hear(answer, heard, clock) {
  if (heard.text !== undefined || heard.thinking !== undefined) {
    clock.first ??= performance.now();
    clock.last = performance.now();
    answer.text += heard.text ?? "";
    answer.thinking += heard.thinking ?? "";
    answer.status = "";
  }
  if (heard.usage !== undefined) {
    clock.usage = heard.usage;
  }
  if (heard.finish !== undefined) {
    answer.finishing = heard.finish;
  }
}

function end(answer, error) {
  if (error.name === "AbortError") {
    answer.ended = "stopped";
    return;
  }
  answer.ended = "trouble";
  answer.trouble = error instanceof Trouble
    ? error
    : new Trouble("failed", `This page failed: ${error.message}`);
}

/** What is told below an answer. */
function noteOf(clock, answer) {
  const parts = [];
  const tokens = clock.usage?.completion_tokens;
  if (tokens !== undefined) {
    parts.push(`${tokens} tokens`);
    const seconds = (clock.last - clock.first) / 1000;
    if (tokens > 1 && seconds > 0.05) {
      parts.push(`${Math.round((tokens - 1) / seconds)} a second`);
    }
  }
  if (clock.first !== null) {
    parts.push(`first after ${((clock.first - clock.asked) / 1000).toFixed(2)} s`);
  }
  const cached = clock.usage?.prompt_tokens_details?.cached_tokens ?? 0;
  if (cached > 0) {
    parts.push(`${cached} of ${clock.usage.prompt_tokens} prompt tokens remembered`);
  }
  if (answer.finishing === "length") {
    parts.push("cut off at the longest length");
  }
  return parts.join(" \u00b7 ");
}

/** Calls at most once a frame, and at once by `now`. */
function onceAFrame(call) {
  let isAsked = false;
  const draw = () => {
    if (!isAsked) {
      isAsked = true;
      requestAnimationFrame(() => {
        if (isAsked) {
          isAsked = false;
          call();
        }
      });
    }
  };
  draw.now = () => {
    isAsked = false;
    call();
  };
  return draw;
}
