"""The kernels compiled to WebAssembly, for the page of a model: ``python -m meshnet.kernels.wasm`` builds them anew.

``engine.wasm``, and ``engine-threads.wasm`` for pages that may share memory between workers, are committed, as weights
are, so that making a page needs no compiler. ``engine.json`` records what they were built from: the compiler, its
flags, and the hashes of source and modules. The same source gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from meshnet.errors import UserError, run_script
from meshnet.files import whole_file, write_json
from meshnet.kernels.build import SOURCE

MODULE, RECORD = SOURCE.with_name("engine.wasm"), SOURCE.with_name("engine.json")
THREADED = SOURCE.with_name("engine-threads.wasm")
EXPORTS = ("meshnet_run", "meshnet_bytes", "meshnet_classes", "meshnet_statistics", "meshnet_norm",
           "meshnet_allocate", "meshnet_free", "malloc", "free")
# Fixed 128-bit SIMD: in all browsers since 2023. Relaxed SIMD would let results depend on the CPU.
FLAGS = ("-target", "wasm32-wasi", "-O3", "-std=c++17", "-msimd128", "-mbulk-memory", "-fignore-exceptions",
         "-fno-rtti", "-fno-sanitize=all", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
         "-mexec-model=reactor", "-s", *(f"-Wl,--export={name}" for name in EXPORTS))
MOST_MEMORY = 1 << 31  # bytes that threads may share: 32768 pages, as in team.js
THREAD_FLAGS = (*FLAGS, "-mcpu=generic+simd128+bulk_memory+atomics+nontrapping_fptoint+sign_ext+mutable_globals",
                "-Wl,--shared-memory", "-Wl,--import-memory",
                f"-Wl,--max-memory={MOST_MEMORY}", "-Wl,--export=meshnet_help", "-Wl,--export=__stack_pointer",
                "-Wl,--export=__wasm_init_tls", "-Wl,--export=__tls_size")
BUILDS = {MODULE: FLAGS, THREADED: THREAD_FLAGS}
TIMEOUT = 1800  # seconds; the first time the compiler builds its own libraries


def source_hash() -> str:
    """The hash of the kernels' source and of the flags."""
    sources = [SOURCE, *sorted((SOURCE.parent / "cpu").glob("*.h"))]
    flags = [" ".join(each) for each in BUILDS.values()]
    text = "\0".join([*(path.read_text(encoding="utf-8") for path in sources), *flags])
    return hashlib.sha256(text.encode()).hexdigest()


def compile_module(flags: Sequence[str] = FLAGS) -> bytes:
    """A module, compiled.

    Raises:
        UserError: where the compiler of requirements-web.txt is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "engine.wasm"
        command = [sys.executable, "-m", "ziglang", "c++", *flags, SOURCE.name, "-o", str(target)]
        done = subprocess.run(command, cwd=SOURCE.parent, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode or not target.is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"{SOURCE}: could not be compiled ({reason}), expected the compiler ziglang; pip install "
                            "-r requirements-web.txt")
        return target.read_bytes()


def record() -> dict:
    """What ``engine.json`` says."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def main() -> None:
    from importlib.metadata import version

    built = {path: compile_module(flags) for path, flags in BUILDS.items()}
    for path, module in built.items():
        with whole_file(path) as temporary:
            temporary.write_bytes(module)
        print(f"{path}: {len(module):,} bytes")
    write_json(RECORD, {"compiler": f"ziglang {version('ziglang')}", "source": source_hash(), "modules": {
        path.name: {"flags": list(BUILDS[path]), "sha256": hashlib.sha256(module).hexdigest(), "bytes": len(module)}
        for path, module in built.items()}})


if __name__ == "__main__":
    run_script(main)
