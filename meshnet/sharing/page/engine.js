// The compiled kernels (meshnet/kernels/kernels.cpp as WebAssembly), and a whole MeshNet by them.
"use strict";

const ACTIVATIONS = { none: 0, relu: 1, elu: 2, gelu: 3 };
const OUTPUTS = { features: 0, logits: 1, probabilities: 2, labels: 3 };
const EPSILON = 1e-5;  // of batch, instance and group norm
const WHOLE_PAGES = 1 << 18;  // bytes from which an array has pages of its own (cpu/pages.h)
const MOST_MEMORY = 2e9;  // bytes of WebAssembly memory

class Engine {
  // `module` is a compiled WebAssembly.Module, `progress` is called with a share of the network from 0 to 1, `memory` is the
  // one that several threads share (team.js).
  constructor(module, progress = () => {}, memory = null) {
    const nothing = () => 0;
    this.share = [0, 1];  // of the network, which the call of the kernels that runs now computes
    const said = (done, total) => progress(this.share[0] + (this.share[1] * done) / total);
    this.instance = new WebAssembly.Instance(module, {
      env: memory ? { progress: said, memory } : { progress: said },
      wasi_snapshot_preview1: { fd_close: nothing, fd_seek: nothing, fd_write: nothing },
    });
    this.kernels = this.instance.exports;
    this.memory = memory || this.kernels.memory;
    this.threads = 1;
    this.kernels._initialize();
    this.kept = [];
  }

  get bytes() {
    return this.memory.buffer.byteLength;
  }

  allocate(bytes) {
    const pages = bytes >= WHOLE_PAGES, at = (pages ? this.kernels.meshnet_allocate(bytes) : this.kernels.malloc(bytes)) >>> 0;
    if (!at) throw new RangeError("out of memory");
    this.kept.push({ at, pages });
    return at;
  }

  put(array) {  // a typed array, or whole numbers
    const data = array.buffer ? array : Int32Array.from(array), at = this.allocate(data.byteLength);
    new data.constructor(this.memory.buffer, at, data.length).set(data);
    return at;
  }

  floats(at, length) {
    return new Float32Array(this.memory.buffer, at, length);
  }

  free(from = 0) {
    for (const { at, pages } of this.kept.splice(from)) (pages ? this.kernels.meshnet_free(at) : this.kernels.free(at));
  }

  // The request of kernels.cpp for a column of 3x3x3 layers: 19 fields of four bytes in the order of `struct Request`.
  request(layers, boxes, gaps, shape, pairs, rest = {}) {
    const { weights = 0, biases = 0, volume = 0, head = null, output = "features", out = 0, outShape = shape, outAt = [0, 0, 0] } = rest;
    return this.put([
      layers.length, this.put([layers[0].in, ...layers.map((layer) => layer.out)]), this.put(layers.map((layer) => layer.dilation)),
      this.put(layers.map((layer) => (layer.norm ? 0 : ACTIVATIONS[layer.activation]))), this.put(pairs.map(Number)), weights, biases,
      this.put(boxes.flat(2)), this.put(gaps.flat(2)), this.put(shape), volume, head ? head.at[0] : 0, head ? head.at[1] : 0,
      head ? head.out : 2, OUTPUTS[output], this.threads, out, this.put(outShape), this.put(outAt),
    ]);
  }

  // Bytes that a column takes beside volume and result.
  columnBytes(layers, boxes, gaps, shape, pairs) {
    const before = this.kept.length;
    const bytes = this.kernels.meshnet_bytes(this.request(layers, boxes, gaps, shape, pairs));
    this.free(before);
    return Number(bytes) + (1 << 20);
  }

  // For each layer whether it computes planes in pairs, as far as `budget` bytes go (calls.choose_pairs), and the bytes.
  choosePairs(layers, boxes, gaps, shape, budget) {
    const pairs = layers.map((layer) => layer.in >= 3);
    let bytes = this.columnBytes(layers, boxes, gaps, shape, pairs);
    const order = layers.map((_, l) => l).sort((a, b) => layers[b].dilation - layers[a].dilation || a - b);
    for (const l of order) {
      if (bytes <= budget) break;
      pairs[l] = false;
      bytes = this.columnBytes(layers, boxes, gaps, shape, pairs);
    }
    return { pairs, bytes };
  }

  putWeights(layers) {
    for (const layer of layers) layer.at = [this.put(layer.weight), this.put(layer.bias), ...(layer.norm ? [this.put(layer.norm.weight), this.put(layer.norm.bias)] : [])];
  }

  run(request) {
    if (this.kernels.meshnet_run(request)) throw new RangeError("out of memory");
  }
}

// The layers of a MeshNet as they run (networks/fuse.py): batch norm fused into weights and biases, in float64.
function fuseLayers(tensors, settings) {
  const { channels, classes, dilations, in_channels: inputs = 1, norm = "batch", activation } = settings;
  const layers = dilations.map((dilation, l) => {
    const get = (name, value) => tensors[`blocks.${l}.${name}`] || new Float32Array(channels).fill(value);
    const wide = l ? channels : inputs, bias = get("conv.bias", 0), weight = get("conv.weight", 0);
    const layer = { weight, bias, dilation, activation, in: wide, out: channels, reach: dilation, norm: null };
    if (norm === "batch") {
      const mean = get("norm.running_mean", 0), variance = get("norm.running_var", 1), gain = get("norm.weight", 1), shift = get("norm.bias", 0);
      const scale = Array.from(variance, (value, c) => gain[c] / Math.sqrt(value + EPSILON)), each = weight.length / channels;
      layer.weight = Float32Array.from(weight, (value, i) => value * scale[Math.floor(i / each)]);
      layer.bias = Float32Array.from(bias, (value, c) => (value - mean[c]) * scale[c] + shift[c]);
    } else if (norm !== "none") {
      layer.norm = { groups: norm === "instance" ? channels : settings.norm_groups, weight: get("norm.weight", 1), bias: get("norm.bias", 0) };
    }
    return layer;
  });
  layers.push({ weight: tensors["head.weight"], bias: tensors["head.bias"] || new Float32Array(classes), dilation: 1,
                activation: "none", in: channels, out: classes, reach: 0, norm: null });
  return layers;
}

// How many bytes of WebAssembly memory a volume takes, before anything is computed: {bytes, pairs}.
function planMemory(engine, layers, shape, box, content) {
  const n = count(shape), convolutions = layers.slice(0, -1), head = layers[layers.length - 1];
  if (convolutions[0].norm) {
    const whole = wholeBox(shape), gaps = airGaps([], [whole, whole], shape, null), { in: wide, out } = convolutions[0];
    const fixed = 4 * n * (wide + 2 * out + (head.out > out ? head.out : 0));
    const each = convolutions.map((layer) => engine.choosePairs([layer], [whole, whole], gaps, shape, MOST_MEMORY - fixed));
    return { bytes: fixed + Math.max(...each.map(({ bytes }) => bytes)), pairs: each.map(({ pairs }) => pairs[0]) };
  }
  const fixed = 4 * n * (convolutions[0].in + head.out);
  const boxes = layerBoxes(layers, box, shape), gaps = airGaps(layers, boxes, shape, content).slice(0, -1);
  const { pairs, bytes } = engine.choosePairs(convolutions, boxes.slice(0, -1), gaps, shape, MOST_MEMORY - fixed);
  return { bytes: fixed + bytes, pairs };
}

// Probabilities of the classes, an array for each, from the channels of a volume. Throws RangeError where memory lacks.
// `whole`: every voxel is computed, not the head's box alone.
function runNetwork(engine, layers, channels, shape, whole = false) {
  engine.free();
  engine.putWeights(layers);
  return layers[0].norm ? runNormed(engine, layers, channels, shape) : runCropped(engine, layers, channels, shape, whole);
}

// Without norms, or with fused ones: the head's box, enlarged as long as something is marked at a face.
function runCropped(engine, layers, channels, shape, whole) {
  const n = count(shape), convolutions = layers.slice(0, -1), head = layers[layers.length - 1];
  const air = borderValues(channels, shape), content = whole ? null : contentBox(channels, shape, air);
  const fill = airProbabilities(layers, air);
  const volume = engine.allocate(4 * n * channels.length), out = engine.allocate(4 * n * head.out);
  channels.forEach((data, c) => engine.floats(volume + 4 * n * c, n).set(data));
  const result = () => Array.from({ length: head.out }, (_, k) => engine.floats(out + 4 * n * k, n));
  result().forEach((map, k) => map.fill(fill[k]));
  const weights = engine.put(convolutions.map((layer) => layer.at[0])), biases = engine.put(convolutions.map((layer) => layer.at[1]));
  const compute = (box) => {
    const before = engine.kept.length, boxes = layerBoxes(layers, box, shape).slice(0, -1);
    const gaps = airGaps(layers, layerBoxes(layers, box, shape), shape, content).slice(0, -1);
    const { pairs } = planMemory(engine, layers, shape, box, content);
    engine.run(engine.request(convolutions, boxes, gaps, shape, pairs,
      { weights, biases, volume, head, output: "probabilities", out, outAt: box.map(([a]) => a) }));
    engine.free(before);
  };
  let box = whole ? wholeBox(shape) : contentOrHeadBox(channels, shape, content), faces = [];
  const moved = new Set();
  compute(box);
  while ((faces = markedFaces(result(), box, shape, fill)).length) {
    const [larger, added] = growBox(box, faces, moved, shape);
    let parts;
    [box, parts] = cheapest(layers, larger, added, shape, content);
    for (const [axis, upper] of faces) moved.add(`${axis}${upper}`);
    parts.forEach(compute);
  }
  return result().map((map) => map.slice());
}

// With instance or group norm: layer by layer over the whole volume, since each norm needs all of its map.
function runNormed(engine, layers, channels, shape) {
  const n = count(shape), convolutions = layers.slice(0, -1), head = layers[layers.length - 1], width = convolutions[0].out;
  const maps = [0, 1].map(() => engine.allocate(4 * n * width + 64)), voxels = BigInt(n);
  let from = engine.allocate(4 * n * channels.length);
  channels.forEach((data, c) => engine.floats(from + 4 * n * c, n).set(data));
  const whole = wholeBox(shape), gaps = airGaps([], [whole, whole], shape, null);
  const { pairs } = planMemory(engine, layers, shape);
  convolutions.forEach((layer, l) => {
    const before = engine.kept.length, out = maps[l % 2];
    engine.share = [l / layers.length, 1 / layers.length];
    engine.run(engine.request([layer], [whole, whole], gaps, shape, [pairs[l]],
      { weights: engine.put([layer.at[0]]), biases: engine.put([layer.at[1]]), volume: from, out }));
    normalise(engine, layer, out, voxels);
    engine.free(before);
    from = out;
  });
  // The other maps are not needed any more.
  const out = head.out <= width ? maps[convolutions.length % 2] : engine.allocate(4 * n * head.out);
  engine.share = [1 - 1 / layers.length, 1 / layers.length];
  if (engine.kernels.meshnet_classes(from, head.in, voxels, head.at[0], head.at[1], head.out, OUTPUTS.probabilities, out, engine.threads))
    throw new RangeError("out of memory");
  return Array.from({ length: head.out }, (_, k) => engine.floats(out + 4 * n * k, n).slice());
}

// Norm and activation of maps, in place. Statistics of a group are those of its channels put together.
function normalise(engine, layer, maps, voxels) {
  const { groups, weight, bias } = layer.norm, each = layer.out / groups, scale = new Float32Array(layer.out), shift = new Float32Array(layer.out);
  const at = engine.allocate(16 * layer.out);
  if (engine.kernels.meshnet_statistics(maps, 1, layer.out, voxels, at, at + 8 * layer.out, engine.threads)) throw new RangeError("out of memory");
  const found = new Float64Array(engine.memory.buffer, at, 2 * layer.out);
  for (let g = 0; g < groups; ++g) {
    const of = Array.from({ length: each }, (_, c) => g * each + c), mean = of.reduce((sum, c) => sum + found[c], 0) / each;
    const variance = of.reduce((sum, c) => sum + found[layer.out + c] + (found[c] - mean) ** 2, 0) / each;
    for (const c of of) {
      const factor = weight[c] / Math.sqrt(variance + EPSILON);
      scale[c] = factor, shift[c] = bias[c] - mean * factor;
    }
  }
  engine.kernels.meshnet_norm(maps, maps, 1, layer.out, voxels, engine.put(scale), engine.put(shift), ACTIVATIONS[layer.activation], engine.threads);
}
