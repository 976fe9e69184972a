"use strict";
/* A conversation with the model: two answers as they come, and the choice between them, whose buttons work meanwhile. */
(() => {
  const talk = document.getElementById("talk");
  const say = document.getElementById("say");
  if (!talk || !say) return;
  const byId = (id) => document.getElementById(id);
  const pending = byId("pending"), choice = byId("choice"), correction = byId("correction"), status = byId("status");
  const text = byId("text"), written = byId("better-text"), fields = choice.querySelector("fieldset");
  const articles = [...pending.querySelectorAll("article")];
  const address = `/chat/${talk.dataset.talk}`;
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": talk.dataset.csrf };
  let seen = null, turnName, since = null, asked = "", answers = [], hearing = null, choosing = false;

  /* What somebody is writing outlives a reload of the page, in this window alone. */
  const draftName = (of) => `${of} of ${address}`;
  function keep(of, draft) {
    if (draft) sessionStorage.setItem(draftName(of), JSON.stringify(draft));
    else sessionStorage.removeItem(draftName(of));
  }
  const kept = (of) => JSON.parse(sessionStorage.getItem(draftName(of)) || "null");

  /* What a refusal says, whatever form it has. */
  async function refusal(response) {
    const told = await response.text();
    try { return JSON.parse(told).error || told; } catch { return told || "Something went wrong; try again."; }
  }

  /* What goes on stands beside the buttons while there are some; what has happened is a notice of its own. */
  let fading;
  function tell(message, wrong = false) {
    status.textContent = message;
    talk.querySelector("[data-status]").textContent = message;
    if (!pending.hidden && !wrong) return;
    const [here, other] = ["notice", "alert"].map(byId);
    (wrong ? here : other).textContent = "";
    (wrong ? other : here).textContent = message;
    clearTimeout(fading);
    fading = setTimeout(() => { here.textContent = other.textContent = ""; }, 3000 + 60 * message.length);
  }

  function turn(role, html, plain) {
    const item = document.createElement("div"), who = document.createElement("span"), body = document.createElement("div");
    item.className = `turn ${role}`;
    who.className = "who";
    who.textContent = role === "user" ? "You" : "Model";
    body.className = "text";
    body.dir = "auto";
    if (html === null) { body.classList.add("growing"); body.textContent = plain; }
    else body.innerHTML = html; /* rendered by our server, with all markup in it escaped */
    item.append(who, body);
    byId("history").append(item);
  }

  function show(told, over) {
    seen = told.seen;
    turnName = told.turn || turnName; /* so that another window's answers are not chosen between unseen */
    answers = told.answers;
    answers.forEach((answer, place) => {
      const said = articles[place].querySelector(".said"), state = articles[place].querySelector(".state");
      const rendered = over && answer.html !== undefined;
      said.classList.toggle("growing", !rendered);
      if (rendered) said.innerHTML = answer.html;
      else if (said.textContent !== answer.text) said.textContent = answer.text;
      const nothing = answer.text.trim() === "";
      state.textContent = answer.ended ? (nothing ? "said nothing" : answer.cut ? "cut off at its longest" : "complete")
        : over ? "stopped" : answer.thinking ? "thinking …" : "writing …";
      articles[place].setAttribute("aria-busy", String(!answer.ended && !over));
      pending.querySelectorAll(`[data-correct="${place}"]`).forEach((button) => { button.disabled = false; });
    });
    if (answers.some((answer) => answer.text.trim()) && since === null) since = performance.now();
    fields.disabled = since === null;
  }

  function open(question) {
    asked = question;
    seen = since = null;
    turnName = undefined;
    answers = [];
    byId("asked").textContent = question;
    articles.forEach((article) => {
      article.querySelector(".said").textContent = "";
      article.querySelector(".state").textContent = "";
    });
    pending.querySelectorAll("[data-correct]").forEach((button) => { button.disabled = true; });
    fields.disabled = true;
    choice.hidden = false;
    correction.hidden = true;
    pending.hidden = false;
    say.hidden = true;
  }

  function close(focus) {
    pending.hidden = true;
    say.hidden = false;
    if (focus) text.focus();
  }

  function place(before) {
    if (before) tell(`${before === 1 ? "One other person is" : `${before} others are`} answered before you.`);
    else tell("Both answers are being written.");
  }

  function happens(kind, told) {
    if (kind === "place") place(told.before);
    else if (kind === "text") show(told, false);
    else if (kind === "ready") {
      show(told, true);
      if (told.answers.every((answer) => answer.ended)) tell("Both answers are there.");
    } else if (kind === "failed") {
      close(true);
      text.value = asked;
      tell(told.error, true);
    }
  }

  /* Server-sent events of a POST, which a browser's EventSource cannot ask for. */
  async function hear(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = Object.fromEntries(part.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
        if (lines.event) happens(lines.event, JSON.parse(lines.data));
      }
    }
  }

  async function send(question) {
    open(question);
    tell("Sent.");
    byId("answers").focus({ preventScroll: true });
    pending.scrollIntoView({ block: "nearest" });
    hearing = new AbortController();
    const mine = hearing;
    try {
      const response = await fetch(`${address}/say`, { method: "POST", headers: { ...headers, Accept: "text/event-stream, application/json" }, body: JSON.stringify({ text: question }), signal: mine.signal });
      if (!response.ok) throw new Error(await refusal(response));
      text.value = "";
      keep("message", null);
      await hear(response);
    } catch (error) {
      if (mine.signal.aborted) return;
      if (answers.length && since !== null) { tell("The connection broke; you can choose by what has come.", true); show({ seen, answers }, true); return; }
      close(true);
      text.value = question;
      tell(error instanceof TypeError ? "The server does not answer. Send it again in a moment." : error.message, true);
    }
  }

  async function choose(value) {
    if (choosing || since === null) return;
    choosing = true;
    fields.disabled = true;
    const seconds = (performance.now() - since) / 1000;
    try {
      const response = await fetch(`${address}/choose`, { method: "POST", headers: { ...headers, Accept: "application/json" }, body: JSON.stringify({ value, seen, turn: turnName, seconds }) });
      if (!response.ok) throw new Error(await refusal(response));
      const chosen = await response.json();
      if (hearing) hearing.abort();
      keep("correction", null);
      keep("message", null);
      turn("user", null, asked);
      turn("assistant", chosen.html);
      byId("undo-choice").hidden = false;
      say.querySelector("label").textContent = "Your next message";
      const from = chosen.place === null ? "what you wrote" : `answer ${"AB"[chosen.place]}${chosen.drawn ? ", which was drawn" : ""}`;
      close(true);
      tell(`${chosen.why || "Kept."} The conversation goes on from ${from}.`);
      say.scrollIntoView({ block: "nearest" });
    } catch (error) {
      tell(error instanceof TypeError ? "The server does not answer. Nothing was kept; choose again." : error.message, true);
      fields.disabled = false;
    } finally {
      choosing = false;
    }
  }

  async function undo() {
    if (!pending.hidden || choosing) return;
    choosing = true;
    try {
      const response = await fetch(`${address}/undo`, { method: "POST", headers: { ...headers, Accept: "application/json" }, body: "{}" });
      if (!response.ok) throw new Error(await refusal(response));
      const back = await response.json();
      [...byId("history").children].slice(-2).forEach((item) => item.remove());
      byId("undo-choice").hidden = byId("history").children.length === 0;
      open(back.asked);
      if (back.turn) {
        show(back.turn, true);
        tell("Taken back. Choose again.");
        byId("answers").focus({ preventScroll: true });
      } else {
        close(true);
        text.value = back.asked;
        tell("Taken back. Nothing was kept of these answers; send your message again.");
      }
    } catch (error) {
      tell(error instanceof TypeError ? "The server does not answer. Nothing was taken back." : error.message, true);
    } finally {
      choosing = false;
    }
  }

  const half = 4;
  const point = (n) => choose({ choice: "better", better: n > half ? 1 : 0, strength: n > half ? n - half : half + 1 - n });

  function correct(number) {
    if (since === null) return;
    choice.hidden = true;
    correction.hidden = false;
    correction.querySelector(`[name=better][value="${number}"]`).checked = true;
    if (hearing && answers.some((answer) => !answer.ended)) { hearing.abort(); show({ seen, answers }, true); }
    const draft = kept("correction");
    written.value = draft && draft.turn === turnName && draft.better === number ? draft.text : answers[number].text;
    written.focus();
  }

  function choosingAgain() {
    correction.hidden = true;
    choice.hidden = false;
    byId("answers").focus({ preventScroll: true });
  }

  function takeBack() {
    if (hearing) hearing.abort();
    close(true);
    text.value = kept("message") || asked;
    tell("Change your message, and send it again.");
  }

  pending.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || button.disabled) return;
    if (button.dataset.point) point(Number(button.dataset.point));
    else if (button.dataset.choice) choose({ choice: button.dataset.choice });
    else if (button.dataset.correct !== undefined) correct(Number(button.dataset.correct));
    else if (button.id === "no-correction") choosingAgain();
    else if (button.id === "take-back") takeBack();
  });
  byId("undo-choice").addEventListener("click", undo);
  choice.addEventListener("submit", (event) => event.preventDefault());
  correction.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!written.value.trim()) { tell("Write the answer first.", true); written.focus(); return; }
    choose({ better: Number(correction.querySelector("[name=better]:checked").value), text: written.value });
  });
  correction.addEventListener("input", () => {
    keep("correction", { turn: turnName, better: Number(correction.querySelector("[name=better]:checked").value), text: written.value });
  });
  text.addEventListener("input", () => keep("message", text.value));
  say.addEventListener("submit", (event) => {
    event.preventDefault();
    if (text.value.trim()) send(text.value.trim());
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say.requestSubmit(); }
  });
  document.addEventListener("keydown", (event) => {
    if (pending.hidden || choice.hidden || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest("textarea, input, select") || document.querySelector("dialog[open]")) return;
    if (/^[1-8]$/.test(event.key)) point(Number(event.key));
    else if (event.key === "0") choose({ choice: "tie" });
    else if (event.key === "b") choose({ choice: "both bad" });
    else if (event.key === "w") correct(answers[1] && !answers[0].text.trim() ? 1 : 0);
    else return;
    event.preventDefault();
  });

  /* After a reload: what had come of the answers can still be chosen between, or the question be sent again. */
  if (talk.dataset.turn) {
    open(say.dataset.asked);
    show(JSON.parse(talk.dataset.turn), true);
    tell("You had not chosen yet. This is how far both answers had come.");
    const draft = kept("correction");
    if (draft && draft.turn === turnName) correct(draft.better);
  } else {
    text.value = kept("message") || say.dataset.asked || "";
    if (say.dataset.asked) tell("Your last message was not answered; send it again, or change it.");
  }
})();
