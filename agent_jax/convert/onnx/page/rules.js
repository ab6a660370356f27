// The rules of minigrid in a room without doors, and its drawing. The data is that of agent_jax/envs/babyai_rooms.py.
"use strict";

const VIEW = 7; // side of the agent's view in cells
const OWN = VIEW * (VIEW - 1) + (VIEW - 1) / 2; // the agent's own cell: middle of the last row
const AHEAD = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up

class World {
  constructor(data) {
    this.data = data;
    this.reset(0);
  }

  reset(room, instruction = 0) {
    this.room = this.data.rooms[room];
    this.cells = [...this.room.cells];
    [this.x, this.y, this.direction] = this.room.agent;
    this.carried = this.steps = 0;
    this.instruct(instruction);
  }

  /** Give another instruction of the room, in the middle of an episode or after its success. */
  instruct(instruction) {
    this.instruction = this.room.instructions[instruction];
    this.success = false;
    this.locate();
  }

  locate() { // the simulator does this only after `drop`
    this.targets = [...this.cells.keys()].filter((place) => this.instruction.kinds.includes(this.cells[place]));
  }

  get place() { return this.y * this.room.width + this.x; }

  get front() {
    const [dx, dy] = AHEAD[this.direction];
    return (this.y + dy) * this.room.width + this.x + dx;
  }

  get done() { return this.success || this.steps >= this.room.max_steps; }

  step(action) {
    const front = this.front, found = this.cells[front], kind = this.data.kinds[found];
    if (action === "left") this.direction = (this.direction + 3) % 4;
    else if (action === "right") this.direction = (this.direction + 1) % 4;
    else if (action === "forward" && kind.walk) {
      this.x += AHEAD[this.direction][0];
      this.y += AHEAD[this.direction][1];
    } else if (action === "pickup" && kind.take && !this.carried) {
      this.carried = found;
      this.cells[front] = 0;
    } else if (action === "drop") {
      if (!found) [this.cells[front], this.carried] = [this.carried, 0];
      this.locate();
    } else if (action === "toggle" && kind.toggles) this.cells[front] = 0;
    this.steps += 1;
    this.success = this.targets.includes(this.front);
  }

  /** Kinds of the 7 x 7 cells ahead of the agent, which of them it sees, and their places in the room; -1: outside. */
  view() {
    const [fx, fy] = AHEAD[this.direction], { width, cells } = this.room, height = cells.length / width;
    const places = [], kinds = [], seen = new Array(VIEW * VIEW).fill(false);
    for (let row = 0; row < VIEW; row++)
      for (let column = 0; column < VIEW; column++) {
        const ahead = VIEW - 1 - row, aside = column - (VIEW - 1) / 2;
        const x = this.x + ahead * fx - aside * fy, y = this.y + ahead * fy + aside * fx;
        places.push(x >= 0 && x < width && y >= 0 && y < height ? y * width + x : -1);
        kinds.push(places.at(-1) < 0 ? this.data.wall : this.cells[places.at(-1)]);
      }
    seen[OWN] = true;
    const spread = (place, aside) => { // sight goes on aside, ahead, and to both
      if (!seen[place] || !this.data.kinds[kinds[place]].see) return;
      seen[place + aside] = true;
      if (place >= VIEW) seen[place - VIEW] = seen[place - VIEW + aside] = true;
    };
    for (let start = VIEW * (VIEW - 1); start >= 0; start -= VIEW) {
      for (let column = 0; column < VIEW - 1; column++) spread(start + column, 1);
      for (let column = VIEW - 1; column > 0; column--) spread(start + column, -1);
    }
    return { places, kinds, seen };
  }

  /** What the agent sees, uint8 (7 size, 7 size, 3), in tiles of `size` pixels. */
  observe(size) {
    const { kinds, seen } = this.view(), n = this.data.kinds.length;
    const tiles = kinds.map((kind, place) => (seen[place] ? n + kind : 0));
    tiles[OWN] = 2 * n + this.carried;
    return this.draw(tiles, VIEW, size);
  }

  /** The whole room from above, with what the agent sees in a lighter shade. */
  overview(size) {
    const { places, seen } = this.view(), n = this.data.kinds.length, tiles = [...this.cells];
    places.forEach((place, i) => { if (seen[i] && place >= 0) tiles[place] += n; });
    tiles[this.place] = 3 * n + this.direction;
    return this.draw(tiles, this.room.width, size);
  }

  draw(tiles, columns, size) {
    const row = 3 * size, atlas = this.data.tiles[size], image = new Uint8Array(tiles.length * row * size);
    tiles.forEach((tile, i) => {
      for (let y = 0; y < size; y++) {
        const from = (tile * size + y) * row;
        const to = ((Math.floor(i / columns) * size + y) * columns + (i % columns)) * row;
        image.set(atlas.subarray(from, from + row), to);
      }
    });
    return image;
  }
}
