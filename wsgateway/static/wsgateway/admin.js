/**
 * Keeps a page of the gateway's admin up to date: asks for what changes, and shows it. Everything
 * can be read and done without this script. See wsgateway/admin/base.py.
 */
"use strict";

(() => {
  const live = document.querySelector("[data-refresh]");
  const bar = document.querySelector(".wsgateway-refresh");
  if (!live || !bar) return;
  const [status, button] = [bar.querySelector("[role=status]"), bar.querySelector("button")];
  const interval = Number(live.dataset.refresh) * 1000;
  const TIMEOUT = 10_000; // ms that an answer may take
  let paused = false;
  let asking = false;
  let timer;

  /** Say whether new content would take away what somebody is just doing. */
  function isBusy() {
    const selection = document.getSelection();
    return (
      live.contains(document.activeElement) ||
      (!selection.isCollapsed && live.contains(selection.anchorNode)) ||
      live.querySelector("input:checked") !== null
    );
  }

  function say(text) {
    if (status.textContent !== text) status.textContent = text;
  }

  async function refresh() {
    const response = await fetch(location.href, {
      headers: { "X-Wsgateway-Refresh": "1" },
      redirect: "manual", // to the login page
      signal: AbortSignal.timeout(TIMEOUT),
    });
    if (response.type === "opaqueredirect" || response.status === 403) {
      stop("You are logged out, or may no longer see this page.");
      return;
    }
    if (!response.ok) throw new Error(`status ${response.status}`);
    const text = await response.text();
    if (paused || isBusy()) return; // since the request began
    live.innerHTML = text;
    live.classList.remove("stale");
    say("");
  }

  async function tick() {
    clearTimeout(timer);
    if (asking) return; // which sets the timer
    if (!document.hidden && !isBusy()) {
      asking = true;
      try {
        await refresh();
      } catch {
        live.classList.add("stale");
        say("Not up to date: the site does not answer.");
      }
      asking = false;
    }
    if (!paused) timer = setTimeout(tick, interval);
  }

  function stop(text) {
    paused = true;
    clearTimeout(timer);
    live.classList.add("stale");
    button.textContent = "Resume updates";
    say(text);
  }

  button.addEventListener("click", () => {
    if (!paused) {
      stop("Paused.");
      return;
    }
    paused = false;
    button.textContent = "Pause updates";
    tick();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !paused) tick();
  });
  bar.hidden = false;
  timer = setTimeout(tick, interval);
})();
