// The agent: sliding history, as agent_jax/convert/exported/policy.py, for actions that are one choice.
"use strict";

/** Bytes of a gzipped file in base64. */
async function unpack(text) {
  const packed = new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
  const plain = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}

class Policy {
  /** Start the runtime and load both graphs. */
  static async load(files, domain) {
    const policy = new Policy();
    policy.domain = domain;
    policy.past = [];
    const script = new Blob([await unpack(files["runtime.mjs"])], { type: "text/javascript" });
    policy.ort = await import(URL.createObjectURL(script));
    const { wasm } = policy.ort.env;
    // One thread: several need a page from a server with headers of its own. The binary: a page cannot fetch from disk.
    Object.assign(wasm, { numThreads: 1, proxy: false, wasmBinary: await unpack(files["runtime.wasm"]) });
    for (const part of ["encoder", "language"]) {
      const path = `${part}.onnx.data`;
      const externalData = path in files ? [{ path, data: await unpack(files[path]) }] : [];
      policy[part] = await policy.ort.InferenceSession.create(await unpack(files[`${part}.onnx`]), {
        externalData, executionProviders: ["wasm"], logSeverityLevel: 3 });
    }
    return policy;
  }

  reset() { this.past = []; }

  integers(values, shape) { return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape); }

  /** Visual tokens of one image: f32 (V, width), flat. */
  async encode(image) {
    const size = this.domain.image_size;
    const given = { frames_BFHWC: new this.ort.Tensor("uint8", image, [1, 1, size, size, 3]),
                    clip_BF: this.integers([0], [1, 1]) };
    const wanted = Object.fromEntries(this.encoder.inputNames.map((name) => [name, given[name]]));
    return (await this.encoder.run(wanted, ["visual_BFVD"])).visual_BFVD.data;
  }

  /** Logits of `ids` after the row of a text and of steps {visual, ids}. */
  async logits(text, steps, ids) {
    const { width, heads, layers, first_position } = this.domain, token = [...text], index = text.map(() => -1);
    let seen = 0;
    for (const step of steps) {
      for (let i = 0; i < step.visual.length / width; i++) index.push(seen++);
      token.push(...new Array(step.visual.length / width).fill(0), ...step.ids);
      index.push(...step.ids.map(() => -1));
    }
    const jump = first_position ? first_position - text.length : 0;
    const visual = new Float32Array(seen * width);
    steps.reduce((at, step) => (visual.set(step.visual, at), at + step.visual.length), 0);
    const { Tensor } = this.ort, slots = [1, token.length];
    const given = {
      token_BC: this.integers(token, slots), visual_BC: this.integers(index, slots),
      visual_BGD: new Tensor("float32", visual, [1, seen, width]),
      position_BC: this.integers(token.map((_, i) => (i < text.length ? i : i + jump)), slots),
      last_B: this.integers([token.length - 1], [1]), ids_A: this.integers(ids, [ids.length]),
      visible_BZ: new Tensor("bool", new Uint8Array(1), [1, 1]) }; // the one slot of the cache is not seen
    for (let layer = 0; layer < layers; layer++)
      for (const part of "kv")
        given[`past_${layer}_${part}`] = new Tensor("float32", new Float32Array(width), [1, heads, 1, width / heads]);
    return [...(await this.language.run(given, ["logits_BA"])).logits_BA.data];
  }

  /**
   * The next action, which is taken to be executed.
   * @param image uint8 (size, size, 3)
   * @param text ids of the instruction
   * @param forced number of the action that is taken in place of the most probable one; -1: none
   */
  async act(image, text, forced = -1) {
    const { before, choices, after, window } = this.domain, { past } = this; // `reset` may come while this runs
    const visual = await this.encode(image);
    const logits = await this.logits(text, [...past, { visual, ids: before }], choices);
    if (!logits.every(Number.isFinite)) throw new Error("the logits are NaN or infinite: the parameters are damaged");
    const best = Math.max(...logits), odds = logits.map((logit) => Math.exp(logit - best));
    const sum = odds.reduce((a, b) => a + b), action = forced < 0 ? logits.indexOf(best) : forced;
    past.push({ visual, ids: [...before, choices[action], ...after] });
    while (past.length >= window) past.shift();
    return { action, logits, probabilities: odds.map((odd) => odd / sum) };
  }
}
