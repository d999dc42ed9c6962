// The scan and its mask as a solid body, drawn by NiiVue, which is loaded only when the user asks for it. No result rests on
// it: where it cannot run the page says so, and the planes of viewer.js stay.
"use strict";

const TURNS = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] };  // azimuth, elevation in degrees
const LEAST = 40;  // of 255 grey levels, below which is air, whose noise would lie around the head as fog

class Solid {
  // place: where its canvas is put; viewer: whose scan, mask, range of grey values and opacity it shows; told: of changes
  constructor(place, viewer, told) {
    Object.assign(this, { place, viewer, told, picture: null, asked: 0 });
  }

  get isOpen() {
    return this.picture !== null;
  }

  async open() {
    const asked = ++this.asked;
    this.told(say("solidLoading"));
    try {
      if (!hasWebGl2()) return this.told(say("noWebGl2"));
      const { Niivue, NVImage } = await loadNiivue();
      if (asked !== this.asked) return;
      await this.show(Niivue, NVImage, asked);
      if (asked === this.asked) this.told(say("solidShown"));
    } catch (error) {
      if (asked !== this.asked) return;
      this.close();
      this.told(error instanceof UserError ? error.message : say("noSolid", String(error?.message || error).slice(0, 120)));
    }
  }

  async show(Niivue, NVImage, asked) {
    const canvas = this.canvas = Object.assign(document.createElement("canvas"), { id: "solid-canvas", tabIndex: 0 });
    canvas.setAttribute("role", "img"), canvas.setAttribute("aria-label", "3-D view of the scan and its mask");
    this.place.replaceChildren(canvas), this.place.hidden = false;
    const picture = this.picture = new Niivue({ interactive: false, dragAndDropEnabled: false, loadingText: "", logLevel: "error", isOrientCube: true, isAntiAlias: false, backColor: [0.047, 0.047, 0.047, 1] });
    await picture.attachToCanvas(canvas, false);
    picture.addColormap("mask", { R: [0, MASK_COLOUR[0]], G: [0, MASK_COLOUR[1]], B: [0, MASK_COLOUR[2]], A: [0, 255], I: [0, 255] });
    const greys = await this.image(NVImage, this.greys(), "gray", 1, LEAST, 255), mask = await this.image(NVImage, this.marked(), "mask", this.share(), 0, 1);
    if (asked !== this.asked) return;
    picture.setSliceType(picture.sliceTypeRender);
    picture.addVolume(greys), picture.addVolume(mask);
    this.mask = mask, this.drawn = this.viewer.labels;
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) this.turn(event.movementX / 2, event.movementY / 2); });
    canvas.addEventListener("webglcontextlost", () => { if (this.canvas === canvas) this.close(), this.told(say("noSolid", "WebGL 2 was taken from it")); });
    picture.setScale(1.25);
  }

  // An image in memory for NiiVue, on the scan's grid.
  image(NVImage, values, colours, opacity, least, most) {
    const { shape, affine } = this.viewer.scan;
    const file = NVImage.createNiftiArray(shape.slice(0, 3), edges(affine), affine.flat(), 2, values);  // 2: unsigned bytes
    return NVImage.new(file.buffer, `${colours}.nii`, colours, opacity, null, least, most);
  }

  greys() {  // as the planes show them
    const { scan: { data }, low, high } = this.viewer, scale = 255 / (high - low), found = new Uint8ClampedArray(data.length);
    for (let i = 0; i < data.length; ++i) found[i] = (Number(data[i]) - low) * scale;
    return found;
  }

  marked() {
    return Uint8Array.from(this.viewer.labels, (label) => Number(label > 0));
  }

  share() {
    return this.viewer.shown ? this.viewer.opacity : 0;
  }

  // The mask and its opacity as the page has them now.
  update() {
    if (!this.mask) return;
    if (this.drawn !== this.viewer.labels) this.mask.img = this.marked(), this.drawn = this.viewer.labels;
    this.mask.opacity = this.share();
    this.picture.updateGLVolume();
  }

  turn(azimuth, elevation) {
    if (!this.mask) return;
    const { renderAzimuth, renderElevation } = this.picture.scene;
    this.picture.setRenderAzimuthElevation((renderAzimuth + azimuth + 360) % 360, Math.min(90, Math.max(-90, renderElevation + elevation)));
  }

  key(event) {
    if (!TURNS[event.key]) return;
    event.preventDefault();
    this.turn(...TURNS[event.key]);
  }

  // Gives back what it holds, of the graphics card's memory too.
  close() {
    const { picture, canvas } = this;
    ++this.asked;
    if (canvas && document.activeElement === canvas) $("solid").focus();  // since the canvas goes
    this.picture = this.mask = this.drawn = this.canvas = null;
    this.place.replaceChildren(), this.place.hidden = true;
    this.told("");
    if (!picture) return;
    picture.cleanup();
    picture.volumes = [];
    loseContext(canvas);
  }
}

function hasWebGl2() {
  return loseContext(document.createElement("canvas")) !== null;
}

// Browsers keep few contexts, and each until its canvas is collected as garbage.
function loseContext(canvas) {
  const context = canvas.getContext("webgl2");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context;
}

// NiiVue from its own file, which holds it packed; it is unpacked to a script in memory, as the page's rule allows. Once it
// is there it stays, and so does the promise of it while it is loaded.
let niivueComes = null;

function loadNiivue() {
  niivueComes ??= unpackNiivue().catch((error) => { niivueComes = null; throw error; });
  return niivueComes;
}

async function unpackNiivue() {
  if (typeof DecompressionStream === "undefined") refuse("noUnpacking");
  if (typeof NIIVUE === "undefined") await loadScript("niivue.js").catch(() => refuse("noNiivue"));
  const text = await new Response(new Blob([bytesOf(NIIVUE)]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  try {
    await loadScript(address);
  } finally {
    URL.revokeObjectURL(address);
  }
  if (!globalThis.niivue) refuse("noNiivue");
  return globalThis.niivue;
}
