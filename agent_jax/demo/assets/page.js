// The page of `python -m agent_jax.demo`. It asks the server for each step, so it sets the pace.
"use strict";

const AXIS_KEYS = [["ArrowRight", "ArrowLeft"], ["ArrowUp", "ArrowDown"], ["KeyW", "KeyS"], ["KeyD", "KeyA"],
                   ["KeyR", "KeyF"], ["KeyE", "KeyQ"], ["KeyT", "KeyG"], ["KeyY", "KeyH"]];
const OPTION_KEYS = { left: "ArrowLeft", right: "ArrowRight", forward: "ArrowUp" };
const MOST_LINES = 200;

const $ = (id) => document.getElementById(id);
const state = { controls: [], byKey: false, playing: false, person: false, waiting: false, frame: null, chosen: new Map(),
                held: new Set(), pressed: new Set(), next: null,
                queued: null };
let socket;

function connect() {
  socket = new WebSocket(`ws://${location.host}/session`);
  socket.onmessage = (event) => receive(JSON.parse(event.data));
  socket.onclose = () => {
    state.playing = state.waiting = false;
    fail("the demo is not there any more: start it again, then reload this page");
  };
}

// One request at a time: the answer is a frame, an opened agent, or an error.
function request(message) {
  if (socket.readyState !== WebSocket.OPEN) return;
  if (state.waiting) {
    if (message.type !== "step") state.queued = message;  // what a person asked for is not lost
    return;
  }
  state.waiting = true;
  socket.send(JSON.stringify(message));
}

function receive(message) {
  if (message.type === "agents") {
    const chosen = $("agent").selectedIndex;
    $("agent").replaceChildren(...message.agents.map((name, number) => new Option(name, number)));
    $("agent").selectedIndex = Math.max(chosen, 0);
    $("cancel").hidden = !message.tuning;
    if (message.result) showResult(message.result);
    return;
  }
  if (message.type === "tuning") {
    $("cancel").hidden = !message.line;
    if (message.line) $("tuning").append(`${message.line}\n`);
    $("tuning").scrollTop = $("tuning").scrollHeight;
    return;
  }
  state.waiting = false;
  if (message.type === "error") {
    state.playing = false;
    fail(message.message);
  } else if (message.type === "opened") {
    open(message);
  } else {
    $("error").hidden = true;
    show(message.frame);
  }
  showButtons();
  const queued = state.queued;
  state.queued = null;
  if (queued) request(queued);
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = false;
  showButtons();
}

function open(message) {
  $("agent").selectedIndex = message.agent;
  $("task").replaceChildren(...message.tasks.map((task) => new Option(task, task)));
  Object.assign(state, { controls: message.controls, byKey: message.by_key, frame: null, person: false });
  assignKeys();
  if (message.frame) show(message.frame);
}

function show(frame) {
  const earlier = state.frame;
  state.frame = frame;
  $("task").value = frame.task;
  $("seed").value = frame.seed;
  if (frame.instructions) {
    $("instructions").replaceChildren(...frame.instructions.map((text) => new Option(text)));
    $("history").replaceChildren();
    $("saw").replaceChildren();
    $("choices").replaceChildren();
    $("chosen").textContent = $("surprised").textContent = "";
  }
  $("reads").textContent = frame.reads;
  $("now").replaceChildren(...frame.images.map((uri) => image(uri, "what the agent sees now")));
  const asked = frame.reads === frame.instruction ? "" : ` (the environment asked: ${frame.instruction})`;
  const ends = { true: "success", false: "failure", null: "the environment cannot tell whether this was done" };
  $("state").textContent = `step ${frame.step}${frame.over ? `: ${ends[frame.success]}` : ""}${asked}`;
  $("state").className = frame.over ? (frame.success ? "good" : "bad") : "note";
  if (frame.seen) showSeen(frame.seen, earlier);
  const { episodes, steps } = frame.demonstrations;
  if (episodes) $("stored").textContent = `stored: ${episodes} episodes, ${steps} steps of yours`;
  if (frame.saved) $("stored").textContent += ` in ${frame.saved}`;
  if (frame.over && state.playing && $("next").checked && !state.person) state.next = Date.now() + 1000;
}

function showSeen(seen, earlier) {
  $("saw").replaceChildren(...(seen.images.length ? seen.images : earlier ? earlier.images : [])
    .map((uri) => image(uri, "what the agent saw")));
  $("surprised").textContent = seen.surprise === null ? "" : `MAE error ${seen.surprise.toFixed(3)}`;
  $("chosen").textContent = seen.who === "agent" ? `the agent: ${seen.action}` : `you: ${seen.action}; the agent's odds:`;
  $("choices").replaceChildren(...seen.choices.map((choice) => {
    const table = element("div", "choice");
    for (const { token, probability, taken } of choice) {
      const bar = element("span", "bar");
      bar.style.width = `${100 * probability}%`;
      table.append(element("span", taken ? "taken" : "", token), bar,
                   element("span", "", `${(100 * probability).toFixed(1)}%`));
    }
    return table;
  }));
  const line = element("li", seen.who, `${seen.who}: ${seen.action}`);
  line.value = state.frame.step;
  $("history").append(line);
  while ($("history").children.length > MOST_LINES) $("history").firstChild.remove();
  line.scrollIntoView({ block: "nearest" });
}

function showResult(result) {
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  $("result").textContent = `success in ${result.task}: ${percent(result.before)} before, ${percent(result.after)} after, `
    + `on the same ${result.episodes} seeds (${result.gained} gained, ${result.lost} lost, p = ${result.p.toFixed(3)}). `
    + "The new agent is in the list above.";
}

function showButtons() {
  $("play").textContent = state.playing ? "pause" : "play";
  $("person").textContent = state.person ? "hand back" : "take over";
  $("person").setAttribute("aria-pressed", state.person);
  $("step").disabled = state.person && state.byKey;
}

function image(uri, text) {
  const found = element("img");
  found.src = uri;
  found.alt = text;
  return found;
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// What a person does: keys and a gamepad, by the controls of the environment.

function assignKeys() {
  let axis = 0;
  let digit = 1;
  const shown = [];
  const key = (label, code, act) => {
    const button = element("button", "", label);
    button.type = "button";
    if (act) button.onclick = act;
    else button.onpointerdown = () => { state.held.add(code); button.onpointerleave = button.onpointerup = () => state.held.delete(code); };
    button.append(" ", element("kbd", "", code.replace(/^(Key|Digit|Arrow)/, "")));
    shown.push(button);
  };
  for (const control of state.controls) {
    if (control.kind === "axis") {
      control.keys = AXIS_KEYS[axis++ % AXIS_KEYS.length];
      key(`${control.label} +`, control.keys[0]);
      key(`${control.label} −`, control.keys[1]);
    } else if (control.kind === "buttons") {
      control.keys = control.labels.map(() => `Digit${digit++ % 10}`);
      control.labels.forEach((label, number) => key(label, control.keys[number]));
    } else {
      state.chosen.set(control, 0);
      control.keys = control.options.map(({ label }) => (state.byKey && OPTION_KEYS[label]) || `Digit${digit++ % 10}`);
      control.options.forEach(({ label }, number) => key(label, control.keys[number], () => choose(control, number)));
    }
  }
  $("keys").replaceChildren(...shown);
}

function choose(control, number) {
  state.chosen.set(control, number);
  if (state.person && state.byKey) act();
}

function act() {
  const action = {};
  const pad = [...(navigator.getGamepads ? navigator.getGamepads() : [])].find(Boolean);
  let axis = 0;
  let button = 0;
  for (const control of state.controls) {
    let value;
    if (control.kind === "choice") {
      value = control.options[state.chosen.get(control)].value;
    } else if (control.kind === "buttons") {
      value = control.keys.map((code) => Number(state.held.has(code) || Boolean(pad?.buttons[button++]?.pressed)));
    } else {
      const sign = axis % 2 ? -1 : 1;  // a stick's y axis points down
      const tilt = sign * (pad?.axes[axis++] ?? 0);
      const share = state.held.has(control.keys[0]) - state.held.has(control.keys[1]) || (Math.abs(tilt) > 0.15 ? tilt : 0);
      value = Math.min(Math.max(share > 0 ? share * control.high : -share * control.low, control.low), control.high);
    }
    if (control.index === null) action[control.key] = value;
    else (action[control.key] ??= [])[control.index] = value;
  }
  request({ type: "act", action, ...shown() });
}

// A gamepad's buttons choose as keys do, once for each press.
function readGamepad() {
  const pad = [...(navigator.getGamepads ? navigator.getGamepads() : [])].find(Boolean);
  if (!pad) return;
  let number = 0;
  for (const control of state.controls.filter(({ kind }) => kind === "choice")) {
    control.options.forEach((_, option) => {
      const down = Boolean(pad.buttons[number]?.pressed);
      if (down && !state.pressed.has(number) && state.person) choose(control, option);
      if (down) state.pressed.add(number); else state.pressed.delete(number);
      number++;
    });
  }
}

const shown = () => ({ attention: $("attention").checked, surprise: $("surprise").checked });

function advance() {
  if (!state.frame || state.frame.over) return;
  if (state.person && state.byKey) return;
  if (state.person) act();
  else request({ type: "step", ...shown() });
}

function begin(seed) {
  state.next = null;
  request({ type: "begin", task: $("task").value, seed, instruction: $("instruction").value });
}

function tick() {
  readGamepad();
  if (state.next && Date.now() > state.next) {
    $("instruction").value = "";
    begin(Number($("seed").value) + 1);
  } else if (state.playing && !state.waiting) {
    advance();
  }
  setTimeout(tick, 1000 / Number($("speed").value));
}

$("episode").onsubmit = (event) => { event.preventDefault(); begin(Number($("seed").value)); };
$("agent").onchange = () => request({ type: "open", agent: $("agent").selectedIndex });
$("play").onclick = () => { state.playing = !state.playing; state.next = null; showButtons(); };
$("step").onclick = () => { state.playing = false; showButtons(); advance(); };
$("person").onclick = () => { state.person = !state.person; $("person").blur(); showButtons(); };
$("learn").onclick = () => {
  $("tuning").textContent = $("result").textContent = "";
  socket.send(JSON.stringify({ type: "finetune", steps: Number($("steps").value) }));  // it runs beside; steps go on
};
$("cancel").onclick = () => socket.send(JSON.stringify({ type: "cancel" }));

document.onkeydown = (event) => {
  if (!state.person || ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
  const codes = state.controls.flatMap((control) => control.keys);
  if (!codes.includes(event.code)) return;
  event.preventDefault();
  if (event.repeat && !state.byKey) return;
  state.held.add(event.code);
  for (const control of state.controls.filter(({ kind }) => kind === "choice")) {
    const number = control.keys.indexOf(event.code);
    if (number >= 0) choose(control, number);
  }
};
document.onkeyup = (event) => state.held.delete(event.code);
window.onblur = () => state.held.clear();

connect();
tick();
