// Drives a page in a real browser: node drive.js '{"browser": …, "address": …, "do": [[step, …], …]}'. Prints what each step
// found as a line of JSON. Packages come from NODE_PATH.
"use strict";

const fs = require("fs");
const puppeteer = require("puppeteer-core").default || require("puppeteer-core");
const request = JSON.parse(process.argv[2]);
const FLAGS = {
  chrome: ["--headless=new", "--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage", ...(request.flags || [])],
  firefox: ["--headless"],
};
const LIMIT = 240000;

const steps = {
  // Put files into the input as a user does, and wait until nothing is left to do.
  async files(page, ...paths) {
    const before = await page.evaluate(() => window.page.cases.length);
    await (await page.$("#files")).uploadFile(...paths);
    await page.waitForFunction((n) => window.page.cases.length > n, { timeout: LIMIT }, before);
    await page.waitForFunction(() => !window.page.running && !window.page.cases.some((one) => one.state === "waiting"), { timeout: LIMIT });
    return page.evaluate(() => ({
      states: window.page.cases.map((one) => one.state), errors: window.page.cases.map((one) => one.error || ""),
      answer: document.getElementById("answer").textContent, hidden: document.getElementById("result").hidden,
      report: window.page.result && { ...reportOf(), bytes: window.page.result.bytes },
      lasted: performance.now(),
    }));
  },
  // A folder by its button, which only Chromium can be given; Firefox is given what it would make of it.
  async folder(page, count, path) {
    const files = fs.readdirSync(path, { recursive: true, withFileTypes: true }).filter((one) => one.isFile()).map(({ parentPath, path: where, name }) => `${parentPath || where}/${name}`);
    if (request.browser === "chrome") await (await page.$("#folder")).uploadFile(path);
    else await page.evaluate(async (all) => take(await Promise.all(all.map(async ([below, content]) => Object.assign(
      new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], below.split("/").pop()), { below, inFolder: true })))),
    files.map((file) => [file.slice(path.lastIndexOf("/") + 1), fs.readFileSync(file).toString("base64")]));
    await page.waitForFunction((n) => window.page.cases.length >= n && !window.page.running, { timeout: LIMIT }, count);
    return page.evaluate(() => ({ states: window.page.cases.map((one) => one.state), names: window.page.cases.map((one) => one.name) }));
  },
  // Files or folders dragged from the desktop, which Chromium alone can be made to do; waits until `count` cases are done.
  async drop(page, count, ...paths) {
    const desk = await page.createCDPSession(), { x, y } = await (await page.$("#target")).boundingBox();
    const data = { items: [], files: paths, dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver", "drop"]) await desk.send("Input.dispatchDragEvent", { type, x: x + 50, y: y + 50, data });
    await page.waitForFunction((n) => (window.page.cases.length >= n && !window.page.running) || document.querySelector("#errors p"), { timeout: 20000 }, count);
    return page.evaluate(() => ({ states: window.page.cases.map((one) => one.state), names: window.page.cases.map((one) => one.name), errors: document.getElementById("errors").innerText }));
  },
  // DICOM files by the input, or as a dropped folder; the choice that the page asks for, confirmed.
  async dicom(page, dropped, ...paths) {
    const before = await page.evaluate(() => window.page.cases.length);
    if (dropped) await page.evaluate(async (files) => {
      const entry = (path, content) => ({ isFile: true, name: path.split("/").pop(), file: (done) => done(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], path.split("/").pop())) });
      const inner = files.map(([path, content]) => entry(path, content));
      const folder = (name, parts) => ({ isFile: false, name, createReader: () => { const left = parts.slice(); return { readEntries: (done) => done(left.splice(0, 7)) }; } });
      take(await droppedFiles({ items: [{ webkitGetAsEntry: () => folder("export", [folder("deeper", inner)]) }], files: [] }));
    }, paths.map((path) => [path, fs.readFileSync(path).toString("base64")]));
    else await (await page.$("#files")).uploadFile(...paths);
    await page.waitForFunction((n) => window.page.cases.length > n || !document.getElementById("channels").hidden, { timeout: LIMIT }, before);
    const asked = await page.evaluate(() => (document.getElementById("channels").hidden ? null : [...document.querySelectorAll("#channels select")].map((one) => one.selectedOptions[0].text)));
    if (asked) await page.click("#channels button");
    await page.waitForFunction((n) => window.page.cases.length > n && !window.page.running, { timeout: LIMIT }, before);
    return page.evaluate((given) => ({ asked: given, states: window.page.cases.map((one) => one.state), errors: window.page.cases.map((one) => one.error || ""),
      names: window.page.cases.map((one) => one.name), answer: document.getElementById("answer").textContent, remarks: document.getElementById("remarks").textContent }), asked);
  },
  // The bytes of a file that a button saves.
  async save(page, id) {
    await page.evaluate(() => { window.page.saved = null; });
    await page.click(`#${id}`);
    await page.waitForFunction(() => window.page.saved, { timeout: LIMIT });
    return page.evaluate(async () => {
      const { name, content } = window.page.saved, bytes = new Uint8Array(await new Blob([content]).arrayBuffer());
      let text = "";
      for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
      return { name, content: btoa(text) };
    });
  },
  async change(page, id, value) {
    const before = await page.evaluate(() => window.page.ticket);
    await page.evaluate((where, to) => {
      const field = document.getElementById(where);
      field.value = to, field.dispatchEvent(new Event("change"));
    }, id, value);
    await page.waitForFunction((n) => window.page.ticket > n, { timeout: LIMIT }, before);
    return page.evaluate(() => document.getElementById("answer").textContent);
  },
  // Keys, pressed where the focus is put.
  async press(page, id, ...keys) {
    await page.focus(`#${id}`);
    for (const key of keys) await page.keyboard.press(key);
  },
  evaluate: (page, code) => page.evaluate(code),
  // Whether the browser lets the page send something away, in each way that a page has.
  // `port`: of UDP on this machine. No policy governs `opened`: another address, as by a link.
  leave: (page, address, port) => page.evaluate(async (to, udp) => {
    const refused = [];
    document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
    const tried = { fetch: await fetch(to, { method: "POST", body: "scan" }).then(() => "sent", () => "refused") };
    tried.beacon = "asked";
    try { navigator.sendBeacon(to, "scan"); } catch { tried.beacon = "refused"; }
    tried.image = await new Promise((done) => { const one = new Image(); one.onload = () => done("sent"); one.onerror = () => done("refused"); one.src = `${to}?image`; });
    tried.script = await new Promise((done) => { const one = document.createElement("script"); one.onload = () => done("sent"); one.onerror = () => done("refused"); one.src = `${to}?script`; document.head.append(one); });
    try {
      const socket = new WebSocket(to.replace("http", "ws"));
      tried.socket = await new Promise((done) => { socket.onopen = () => done("sent"); socket.onerror = () => done("refused"); });
    } catch { tried.socket = "refused"; }
    const form = document.createElement("form");
    Object.assign(form, { action: to, method: "post", target: "_blank" });
    document.body.append(form);
    try { form.submit(); } catch { tried.form = "refused"; }
    const means = ["RTCPeerConnection", "webkitRTCPeerConnection"].filter((name) => name in window);
    for (const name of means) {
      const peer = new window[name]({ iceServers: [{ urls: `stun:127.0.0.1:${udp}` }] });
      peer.createDataChannel("scan");
      await peer.setLocalDescription(await peer.createOffer());
    }
    tried.peer = means.length ? "sent" : "refused";
    await new Promise((done) => setTimeout(done, 1000));
    window.location.href = `${to}?opened`;  // answered with nothing, so that the page stays
    await new Promise((done) => setTimeout(done, 500));
    return { tried, refused };
  }, address, port),
  async axe(page) {
    await page.evaluate(fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
    return page.evaluate(async () => (await axe.run()).violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).slice(0, 3)}`));
  },
  // The whole way by keys alone: a scan opened and cancelled, another one opened, its slices and threshold changed, its mask
  // saved. No mouse, and no focus but by Tab.
  async alone(page, large, small) {
    const press = (...keys) => keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve());
    const at = () => page.evaluate(() => document.activeElement.id);
    const tab = async (id, key = "Tab") => {
      for (let i = 0; i < 80 && (await at()) !== id; ++i) key === "Tab" ? await press("Tab") : (await page.keyboard.down("Shift"), await press("Tab"), await page.keyboard.up("Shift"));
      if ((await at()) !== id) throw new Error(`${id} is not reached`);
    };
    const open = async (path) => {
      await tab("files", "back");
      const [chooser] = await Promise.all([page.waitForFileChooser(), press(" ")]);
      await chooser.accept([path]);
    };
    await tab("files");
    await open(large);
    await page.waitForFunction(() => window.page.running, { timeout: LIMIT });
    await tab("cancel");
    await press("Enter");
    await page.waitForFunction(() => !window.page.running, { timeout: LIMIT });
    const kept = await at();
    await open(small);
    await page.waitForFunction(() => window.page.cases.length === 2 && !window.page.running, { timeout: LIMIT });
    await tab("canvas");
    const places = [await page.evaluate(() => String(viewer.at))];
    await press("ArrowLeft", "ArrowUp", "PageUp");
    places.push(await page.evaluate(() => String(viewer.at)));
    await tab("opacity");
    await press("ArrowRight");
    await tab("threshold");
    await press("ArrowUp");
    await page.waitForFunction(() => window.page.result.decision.threshold !== window.page.result.own.threshold, { timeout: LIMIT });
    await tab("save-mask");
    await press("Enter");
    await page.waitForFunction(() => window.page.saved, { timeout: LIMIT });
    return page.evaluate((found, focus) => ({ places: found, focus, states: window.page.cases.map((one) => one.state), saved: window.page.saved.name,
      opacity: viewer.opacity, threshold: window.page.result.decision.threshold }), places, kept);
  },
  async keyboard(page, ...paths) {  // everything by Tab, Enter and the arrows
    const reached = [];
    await page.evaluate(() => { document.activeElement.blur(); window.scrollTo(0, 0); });
    for (let i = 0; i < 60; ++i) {
      await page.keyboard.press("Tab");
      const at = await page.evaluate(() => document.activeElement.id || document.activeElement.textContent.slice(0, 40));
      if (reached.length > 3 && at === reached[0]) break;
      reached.push(at);
    }
    await page.focus("#canvas");
    const places = [await page.evaluate(() => String(viewer.at))];
    for (const key of ["ArrowLeft", "ArrowUp", "PageUp"]) await page.keyboard.press(key);
    places.push(await page.evaluate(() => String(viewer.at)));
    return { reached, places };
  },
  async picture(page, path, width, height, dark) {
    await page.setViewport({ width, height });
    if (request.browser === "chrome") await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
    await new Promise((done) => setTimeout(done, 500));
    await page.screenshot({ path, fullPage: true });
    return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  },
};

async function main() {
  const { browser: kind, address } = request;
  const browser = await puppeteer.launch({ browser: kind, executablePath: request.program,
    headless: true, args: FLAGS[kind], protocolTimeout: LIMIT, timeout: LIMIT, extraPrefsFirefox: request.prefs || {} });
  const page = await browser.newPage(), said = [];
  page.on("pageerror", (error) => { if (!/Content-Security-Policy/.test(error)) said.push(String(error)); });  // Firefox says what it refuses
  await page.setViewport({ width: 1280, height: 900 });
  await page.goto(address, { timeout: LIMIT });
  await page.waitForFunction(() => window.page && window.page.ready, { timeout: LIMIT });
  for (const [name, ...values] of request.do) console.log(JSON.stringify({ step: name, found: (await steps[name](page, ...values)) ?? null }));
  console.log(JSON.stringify({ step: "end", found: said }));
  await browser.close();
}

main().catch((error) => { console.log(JSON.stringify({ step: "failed", found: String(error.stack) })); process.exit(1); });
