// The page: buttons, pictures and probabilities around a World and a Policy.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const ROOM_TILE = 32, TILE = DATA.domain.image_size / VIEW; // pixels
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "forward" };
const $ = (id) => document.getElementById(id);

const app = {
  busy: false, // an action is being computed
  playing: false,

  async start() {
    for (const size in DATA.world.tiles) DATA.world.tiles[size] = await unpack(DATA.world.tiles[size]);
    this.world = new World(DATA.world);
    DATA.world.rooms.forEach(({ level, seed }, i) => $("room").add(new Option(`${level}, seed ${seed}`, i)));
    $("probabilities").innerHTML = DATA.world.actions.map((name) =>
      `<tr><td>${name}</td><td class="track"><div class="bar"></div></td><td class="n"></td></tr>`).join("");
    this.reset();
    $("room").onchange = $("reset").onclick = () => this.reset();
    $("instruction").onchange = () => {
      this.world.instruct(Number($("instruction").value));
      this.show();
    };
    for (const id of ["room", "instruction"]) // the arrow keys are the agent's
      $(id).addEventListener("change", () => $(id).blur());
    $("step").onclick = () => { this.playing = false; this.step(); };
    $("play").onclick = () => { this.playing = !this.playing; this.show(); };
    setInterval(() => this.playing && this.step(), 300);
    addEventListener("keydown", (event) => {
      if (!(event.key in KEYS) || event.target.tagName === "SELECT") return; // they choose in an open list
      event.preventDefault();
      this.playing = false;
      this.step(KEYS[event.key]);
    });
    this.policy = await Policy.load(DATA.files, DATA.domain);
    this.show();
  },

  reset() {
    this.playing = false;
    this.policy?.reset();
    this.world.reset(Number($("room").value));
    $("instruction").replaceChildren(...this.world.room.instructions.map(({ text }, i) => new Option(text, i)));
    this.last = null;
    this.show();
  },

  /** One step of the agent, or of a person who names the action; returns what the agent computed. */
  async step(named = "") {
    if (this.busy || !this.policy || this.world.done) return null;
    this.busy = true;
    const { past } = this.policy, { actions } = DATA.world;
    try {
      const found = await this.policy.act(this.world.observe(TILE), this.world.instruction.ids, actions.indexOf(named));
      if (this.policy.past !== past) return null; // was reset meanwhile
      this.world.step(actions[found.action]);
      this.last = { ...found, by: named ? "you" : "the agent" };
      return found;
    } finally {
      this.busy = false;
      this.playing &&= !this.world.done;
      this.show();
    }
  },

  show() {
    const { world, last } = this;
    paint($("overview"), world.overview(ROOM_TILE), world.room.width * ROOM_TILE);
    paint($("view"), world.observe(TILE), VIEW * TILE);
    $("play").textContent = this.playing ? "pause" : "play";
    for (const id of ["play", "step"]) $(id).disabled = !this.policy || world.done;
    const steps = `step ${world.steps} of at most ${world.room.max_steps}`;
    const end = world.success ? ": success" : ": the steps are used up";
    $("status").textContent = this.policy ? steps + (world.done ? end : "") : "loading the runtime and the graphs";
    $("status").className = world.success ? "good" : world.done ? "bad" : "";
    $("last").textContent = last ? `taken by ${last.by}: ${DATA.world.actions[last.action]}` : "none yet";
    [...$("probabilities").rows].forEach((row, i) => {
      const share = last ? 100 * last.probabilities[i] : 0;
      row.className = last?.action === i ? "taken" : "";
      row.querySelector(".bar").style.width = `${share}%`;
      row.querySelector(".n").textContent = last ? `${share.toFixed(1)}%` : "";
    });
  },
};

/** Draw an RGB image on a canvas, which takes its size. */
function paint(canvas, image, width) {
  const height = image.length / 3 / width, pixels = new ImageData(width, height);
  pixels.data.fill(255);
  for (let i = 0; i < width * height; i++) pixels.data.set(image.subarray(3 * i, 3 * i + 3), 4 * i);
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

addEventListener("unhandledrejection", ({ reason }) => { // of the start, or of a step
  app.playing = false;
  $("status").className = "bad";
  $("status").textContent = `error: ${reason?.message ?? reason}`;
});
const ready = app.start();
