// Threads of the engine: web workers on one shared memory, where a page is allowed to have it (it must be isolated by the
// headers of its host). They wait in meshnet_help (meshnet/kernels/cpu/threads.h) until the engine has work.
"use strict";

const FIRST_PAGES = 512, MOST_PAGES = 32768;  // of 64 kB; the second as in wasm.py
const STACK = 1 << 18;  // bytes of each helper
const MOST_THREADS = 8;

// What a helper runs.
const HELPER = `
onmessage = ({ data: { module, memory, stack, tls, number } }) => {
  const nothing = () => 0, wasi = { fd_close: nothing, fd_seek: nothing, fd_write: nothing };
  const { exports } = new WebAssembly.Instance(module, { env: { memory, progress: nothing }, wasi_snapshot_preview1: wasi });
  exports.__stack_pointer.value = stack;
  exports.__wasm_init_tls(tls);
  postMessage("ready");
  exports.meshnet_help(number);
};`;

// An engine of several threads, from the module that is compiled for it. `startWorker(source)` starts one.
async function engineWithThreads(module, threads, startWorker, progress) {
  const memory = new WebAssembly.Memory({ initial: FIRST_PAGES, maximum: MOST_PAGES, shared: true });
  const engine = new Engine(module, progress, memory), { malloc, __tls_size: size } = engine.kernels;
  const even = (at) => (at + 15) & ~15;
  await Promise.all(Array.from({ length: threads - 1 }, (_, i) => new Promise((ready, failed) => {
    const worker = startWorker(HELPER), stack = even(malloc(STACK + 16)) + STACK, tls = even(malloc(size.value + 16));
    worker.onmessage = ready, worker.onerror = failed;
    worker.postMessage({ module, memory, stack, tls, number: i + 1 });
  })));
  engine.threads = threads;
  return engine;
}
