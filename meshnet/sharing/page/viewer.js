// Three planes of a scan on a 2-D canvas, with the mask filled and outlined. Radiological view, scaled to millimetres.
"use strict";

const MASK_COLOUR = [255, 140, 40];  // told from grey by the colour-blind too; its outline does not rest on colour
const PLANES = [  // axis of the world cut through, axis that runs right, letters left and right
  { name: "axial", cut: 2, across: 0, letters: "RL" }, { name: "coronal", cut: 1, across: 0, letters: "RL" },
  { name: "sagittal", cut: 0, across: 1, letters: "AP" },
];

class Viewer {
  constructor(canvas, moved) {
    this.canvas = canvas, this.moved = moved, this.shown = true, this.opacity = 0.4, this.scan = null;
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  // scan: {data, shape, affine} in a file's order
  open(scan, labels) {
    this.scan = scan, this.labels = labels;
    const world = orientation(scan.affine), strides = [1, scan.shape[0], scan.shape[0] * scan.shape[1]], sizes = edges(scan.affine);
    this.axes = [0, 1, 2].map((w) => {  // of the world: how to walk along it in the file
      const axis = world.findIndex(([to]) => to === w);
      return { axis, sign: world[axis][1], n: scan.shape[axis], step: strides[axis], mm: sizes[axis] };
    });
    this.range();
    this.at = this.axes.map(({ n }) => n >> 1);
    this.draw();
  }

  // Grey values from the 1st to the 99.5th percentile of a sample of the voxels that are not air.
  range() {
    const { data } = this.scan, [least] = extremes(data), step = Math.max(1, Math.floor(data.length / 60000)), found = [];
    for (let i = 0; i < data.length; i += step) if (data[i] > least) found.push(Number(data[i]));
    found.sort((a, b) => a - b);
    this.low = found[Math.floor(found.length * 0.01)] ?? least;
    this.high = found[Math.floor(found.length * 0.995)] ?? least + 1;
    if (!(this.high > this.low)) this.high = this.low + 1;
  }

  // Go to a voxel of the file.
  go(voxel) {
    this.at = this.axes.map(({ axis, sign, n }) => {
      const i = Math.min(Math.max(Math.round(voxel[axis]), 0), n - 1);
      return sign > 0 ? i : n - 1 - i;
    });
    this.draw();
  }

  place(index) {  // of a voxel given along the world's axes
    return this.axes.reduce((sum, { sign, n, step }, w) => sum + (sign > 0 ? index[w] : n - 1 - index[w]) * step, 0);
  }

  layout() {
    const ratio = Math.min(2, window.devicePixelRatio || 1), width = Math.max(200, Math.round(this.canvas.parentElement.clientWidth * ratio));
    const gap = Math.round(6 * ratio), mm = (w) => this.axes[w].n * this.axes[w].mm;
    const stacked = width / ratio < 520;  // a phone: two planes beside each other, the third below
    const shownAt = stacked ? [[0, 1], [2]] : [[0, 1, 2]], panels = [];
    let y = 0;
    for (const row of shownAt) {
      const all = row.reduce((sum, p) => sum + mm(PLANES[p].across), 0), scale = (width - gap * (row.length - 1)) / Math.max(all, stacked && row.length === 1 ? 2 * all : all);
      let x = 0, tallest = 0;
      for (const p of row) {
        const { cut, across } = PLANES[p], up = 3 - cut - across, w = Math.max(1, Math.floor(mm(across) * scale)), h = Math.max(1, Math.floor(mm(up) * scale));
        panels.push({ plane: PLANES[p], up, x, y, w, h });
        x += w + gap, tallest = Math.max(tallest, h);
      }
      y += tallest + gap;
    }
    return { width, height: Math.max(1, y - gap), panels, ratio };
  }

  draw() {
    if (!this.scan) return;
    const { width, height, panels, ratio } = this.current = this.layout();
    Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    for (const panel of panels) {
      const { plane: { cut, across, letters, name }, up, x, y, w, h } = panel;
      context.putImageData(this.slice(cut, across, up, w, h), x, y);
      const right = this.axes[across].n, cx = x + (1 - (this.at[across] + 0.5) / right) * w, cy = y + (1 - (this.at[up] + 0.5) / this.axes[up].n) * h;
      context.fillStyle = "rgba(120, 200, 255, .75)";
      context.fillRect(x, Math.round(cy), w, ratio), context.fillRect(Math.round(cx), y, ratio, h);
      context.font = `${Math.round(13 * ratio)}px system-ui, sans-serif`;
      context.fillStyle = "#fff", context.textBaseline = "top", context.textAlign = "left";
      context.fillText(letters[0], x + 4 * ratio, y + 4 * ratio);
      context.textAlign = "right";
      context.fillText(letters[1], x + w - 4 * ratio, y + 4 * ratio);
      panel.name = name;
    }
    this.moved(this);
  }

  // A slice as pixels, nearest voxels; both axes run against the screen's (the patient's right is left, up is up).
  slice(cut, across, up, w, h) {
    const { data } = this.scan, picture = new ImageData(w, h), index = [0, 0, 0], scale = 255 / (this.high - this.low);
    const columns = Array.from({ length: w }, (_, i) => Math.floor((1 - (i + 0.5) / w) * this.axes[across].n));
    const rows = Array.from({ length: h }, (_, j) => Math.floor((1 - (j + 0.5) / h) * this.axes[up].n));
    index[cut] = this.at[cut];
    const marked = (i, j) => {
      if (i < 0 || j < 0 || i >= this.axes[across].n || j >= this.axes[up].n) return false;
      index[across] = i, index[up] = j;
      return this.labels[this.place(index)] > 0;
    };
    for (let y = 0, p = 0; y < h; ++y)
      for (let x = 0; x < w; ++x, p += 4) {
        index[across] = columns[x], index[up] = rows[y];
        const at = this.place(index), grey = Math.min(Math.max((Number(data[at]) - this.low) * scale, 0), 255);
        let colour = [grey, grey, grey];
        if (this.shown && this.labels[at]) {
          const beside = [[x - 1, y], [x + 1, y], [x, y - 1], [x, y + 1]];
          const edge = beside.some(([i, j]) => !marked(columns[i] ?? -1, rows[j] ?? -1));
          const share = edge && this.opacity > 0 ? 1 : this.opacity;
          colour = colour.map((value, c) => value * (1 - share) + MASK_COLOUR[c] * share);
        }
        picture.data.set([...colour, 255], p);
      }
    return picture;
  }

  point(event) {
    const { panels } = this.current || { panels: [] }, box = this.canvas.getBoundingClientRect(), scale = this.canvas.width / box.width;
    const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    for (const { plane: { across }, up, x, y, w, h } of panels) {
      if (px < x || px >= x + w || py < y || py >= y + h) continue;
      const to = (share, n) => Math.min(n - 1, Math.max(0, Math.floor((1 - share) * n)));
      this.at[across] = to((px - x) / w, this.axes[across].n), this.at[up] = to((py - y) / h, this.axes[up].n);
      this.draw();
    }
  }

  key(event) {
    const steps = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };
    if (!steps[event.key] || !this.scan) return;
    const [world, by] = steps[event.key];
    this.at[world] = Math.min(this.axes[world].n - 1, Math.max(0, this.at[world] + by));
    event.preventDefault();
    this.draw();
  }
}
