// What the pages do besides htmx: keys, sheets, drafts, the time that reading took, and saying what happened.
"use strict";

(() => {
  const PAUSE = 700; // milliseconds after the last key before a draft is saved
  const AGAIN = 5000; // milliseconds until a draft that could not be saved is tried again

  const task = () => document.querySelector("#task .task");
  const answer = () => document.getElementById("answer");
  const csrf = () => JSON.parse(document.body.getAttribute("hx-headers") || "{}")["X-CSRF-Token"] || "";

  // Saying what happened. Both places are live regions.

  let fading;
  function say(text, wrong) {
    const [here, other] = ["notice", "alert"].map((id) => document.getElementById(id));
    (wrong ? here : other).textContent = "";
    (wrong ? other : here).textContent = text;
    if (wrong && text.includes("/consent")) { // what somebody wrote here stays while they read it elsewhere
      const link = document.createElement("a");
      Object.assign(link, { href: "/consent", target: "_blank", rel: "noopener", textContent: "Open it" });
      other.append(" ", link);
    }
    clearTimeout(fading);
    fading = setTimeout(() => { here.textContent = other.textContent = ""; }, 3000 + 60 * text.length);
  }

  // The time that a question was in sight.

  let seen = 0; // before `since`, also on this page as it was before it was loaded again
  let since = performance.now();
  const mark = () => task() && `seen ${task().dataset.assignment}`;
  const seconds = () => (seen + (document.hidden ? 0 : performance.now() - since)) / 1000;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      seen += performance.now() - since;
      since = performance.now();
      saveDraft(true);
    } else {
      since = performance.now();
    }
  });

  // Drafts.

  let waiting = null;
  let saving = Promise.resolve();
  function laterDraft(after) {
    clearTimeout(waiting);
    waiting = setTimeout(() => saveDraft(false), after);
  }
  function saveDraft(leaving) {
    const form = answer();
    if (waiting === null || !form || !form.dataset.draft) return saving;
    clearTimeout(waiting);
    waiting = null;
    const state = document.getElementById("draft-state");
    const body = new URLSearchParams(new FormData(form));
    saving = fetch(form.dataset.draft, { method: "POST", body, keepalive: leaving, headers: { Accept: "application/json", "X-CSRF-Token": csrf() } })
      .then((response) => {
        if (form.isConnected && state) state.textContent = response.ok ? "Draft saved" : "Draft not saved";
      })
      .catch(() => {
        if (!form.isConnected) return;
        state.textContent = "Draft not saved: the server cannot be reached";
        if (waiting === null) laterDraft(AGAIN);
      });
    return saving;
  }
  function edited(event) {
    if (event.target.form && event.target.form.id === "answer" && event.target.form.dataset.draft) laterDraft(PAUSE);
  }
  document.addEventListener("input", edited);
  document.addEventListener("change", edited);
  window.addEventListener("pagehide", () => {
    saveDraft(true);
    if (mark()) sessionStorage.setItem(mark(), String(seconds()));
  });

  // Sheets. A link that opens one leads to the same text where there is none.

  function open(sheet) {
    saveDraft(false);
    const text = sheet.id === "guidelines" ? document.getElementById("guidelines-text") : null;
    if (text && !text.textContent.trim()) htmx.ajax("GET", "/guidelines", { target: text });
    sheet.showModal();
    sheet.focus(); // and not its first button, which Enter would press
  }
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-opens]");
    const sheet = opener && document.getElementById(opener.dataset.opens);
    if (sheet && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      open(sheet);
    }
    if (event.target.closest("[data-closes]")) event.target.closest("dialog").close();
    if (event.target instanceof HTMLDialogElement) event.target.close(); // beside it
  });

  // Keys. What a key does is written at the button that does it; while somebody types, keys do nothing else.

  const types = (element) =>
    element.isContentEditable || element.matches("textarea, select, input:not([type=radio], [type=checkbox], [type=submit], [type=button])");
  let busy = false;

  document.addEventListener("keydown", (event) => {
    const at = event.target instanceof Element ? event.target : document.body;
    if (event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && at.matches("textarea")) {
      const main = at.closest("form") && at.closest("form").querySelector("button[data-main], button:not([type=button]):not([form])");
      if (main && !busy) { event.preventDefault(); main.click(); }
      return;
    }
    if (event.key === "Escape" && types(at) && !at.closest("dialog")) { at.blur(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || types(at) || busy) return;
    if (event.key === "Enter" && at.matches("button, a, summary, input")) return; // it does what it does
    const sheet = document.querySelector("dialog[open]");
    if (!sheet && /^[1-9]$/.test(event.key) && grade(Number(event.key))) { event.preventDefault(); return; }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const found = [...(sheet || document).querySelectorAll(`[data-key="${CSS.escape(key)}"]`)].find((one) => one.closest("dialog") === sheet && !one.disabled);
    if (!found) return;
    event.preventDefault();
    if (found.matches("textarea, input[type=text]")) {
      found.focus();
      found.setSelectionRange(found.value.length, found.value.length);
    } else {
      found.click();
    }
  });

  // Scales: a key grades the one whose turn it is.

  const scales = () => [...document.querySelectorAll("#answer [data-scale]")];
  let turn = 0;
  function take(number) {
    turn = number;
    scales().forEach((scale, place) => scale.classList.toggle("next", place === number));
  }
  function grade(value) {
    const scale = scales()[turn];
    const choice = scale && scale.querySelector(`input[value="${value}"]`);
    if (!choice) return scales().length > 0;
    choice.click();
    return true;
  }
  document.addEventListener("change", (event) => {
    const place = scales().findIndex((scale) => scale.contains(event.target));
    if (place >= 0) take((place + 1) % scales().length);
  });

  // Rankings: the next best, one after another. The lists of places are what is sent.

  const ranked = () => [...document.querySelectorAll("#answer [data-ranked]")];
  const place = (card) => card.querySelector("select");
  const rank = (card) => Number(place(card).value || 0);
  const name = (card) => card.querySelector(".letter").textContent;
  function close() { // no place is left out
    const used = [...new Set(ranked().map(rank))].filter(Boolean).sort((a, b) => a - b);
    ranked().forEach((card) => { if (rank(card)) place(card).value = String(used.indexOf(rank(card)) + 1); });
  }
  function tellRanking() {
    const told = document.getElementById("ranking");
    if (!told) return;
    const cards = ranked();
    const groups = [];
    cards.forEach((card) => {
      const next = card.querySelector("[data-next]");
      next.setAttribute("aria-pressed", String(rank(card) > 0));
      card.classList.toggle("chosen", rank(card) > 0);
      if (rank(card)) (groups[rank(card)] = groups[rank(card)] || []).push(name(card));
    });
    const order = groups.filter(Boolean).map((names) => names.join(" = ")).join(", then ");
    const left = cards.filter((card) => !rank(card)).length;
    told.textContent = !order ? "Choose the best one first, then the next." : left ? `${order}; then?` : order;
  }
  function next(card) {
    const tie = document.querySelector("[data-tie]");
    const highest = Math.max(...ranked().map(rank));
    if (rank(card)) {
      place(card).value = "";
      close();
    } else {
      place(card).value = String(Math.max(1, tie.getAttribute("aria-pressed") === "true" ? highest : highest + 1));
    }
    tie.setAttribute("aria-pressed", "false");
    place(card).dispatchEvent(new Event("change", { bubbles: true }));
  }
  document.addEventListener("click", (event) => {
    const by = (what) => event.target.closest(`#answer [data-${what}]`);
    if (by("next")) next(by("next").closest("[data-ranked]"));
    if (by("tie")) by("tie").setAttribute("aria-pressed", String(by("tie").getAttribute("aria-pressed") !== "true"));
    if (by("clear")) {
      ranked().forEach((card) => { place(card).value = ""; });
      place(ranked()[0]).dispatchEvent(new Event("change", { bubbles: true }));
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("#answer [data-ranked] select")) {
      event.target.blur(); // so that keys work again
      tellRanking();
    }
  });

  // Corrections begin from the answer that is chosen, unless something was written already.

  function correct(choice, write) {
    const cards = [...document.querySelectorAll("#answer [data-raw]")];
    const field = document.querySelector("#answer textarea[name=text]");
    cards.forEach((card) => card.classList.toggle("chosen", card.contains(choice)));
    const untouched = !field.value.trim() || cards.some((card) => card.dataset.raw.trim() === field.value.trim());
    if (write && untouched) {
      field.value = choice.closest("[data-raw]").dataset.raw;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }
  document.addEventListener("change", (event) => {
    if (event.target.matches("#answer [data-raw] input[name=better]")) correct(event.target, true);
  });

  // One question after another.

  document.addEventListener("change", (event) => {
    const filter = event.target.closest("[data-filter]");
    if (filter) {
      for (const choice of filter.querySelectorAll("select")) choice.disabled = !choice.value; // a short address
      filter.requestSubmit();
    }
  });
  document.addEventListener("submit", (event) => {
    if (event.target.id !== "answer") return;
    clearTimeout(waiting);
    waiting = null;
    event.target.elements.seconds.value = seconds().toFixed(1);
    sessionStorage.removeItem(mark());
  }, true);
  document.addEventListener("htmx:confirm", (event) => { // what was written is saved before anything else is done
    if (waiting === null || event.detail.elt.id === "answer") return;
    event.preventDefault();
    saveDraft(false).then(() => event.detail.issueRequest());
  });
  document.addEventListener("htmx:beforeRequest", (event) => { if (event.detail.target.id === "task") busy = true; });
  document.addEventListener("htmx:afterRequest", () => { busy = false; });
  document.addEventListener("htmx:sendError", () => failed("The server cannot be reached, or its answer was lost on the way. Try again: nothing is kept twice."));
  document.addEventListener("htmx:responseError", (event) => {
    const { status, responseText } = event.detail.xhr;
    failed(status < 500 && responseText ? responseText : "Something went wrong. Nothing was saved; try again.");
    if (status === 409 && task()) htmx.ajax("GET", "/tasks" + location.search, { target: "#task" });
  });
  function failed(message) {
    document.querySelectorAll("dialog[open]").forEach((sheet) => sheet.close()); // they would hide it
    say(message, true);
  }
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id !== "task") return;
    begin();
    const told = document.querySelector("#task [data-notice]");
    if (told) say(told.textContent);
    const now = document.activeElement;
    if (!now || now === document.body || !types(now)) {
      const title = document.querySelector("#task h1");
      if (title) title.focus({ preventScroll: true });
      window.scrollTo(0, 0);
    }
  });

  function begin() {
    seen = 1000 * Number((mark() && sessionStorage.getItem(mark())) || 0);
    since = performance.now();
    clearTimeout(waiting);
    waiting = null;
    const unset = scales().findIndex((scale) => !scale.querySelector(":checked"));
    take(Math.max(0, unset));
    tellRanking();
    const chosen = document.querySelector("#answer [data-raw] input[name=better]:checked");
    if (chosen) correct(chosen, false);
  }
  begin();
})();
