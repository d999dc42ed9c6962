"""The kernels compiled to WebAssembly, for the page of a model: ``python -m meshnet.kernels.wasm`` builds them anew.

``engine.wasm`` is committed, as weights are, so that making a page needs no compiler. ``engine.json`` records what it
was built from: the compiler, its flags, and the hashes of source and module. The same source gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from meshnet.errors import UserError, run_script
from meshnet.files import whole_file, write_json
from meshnet.kernels.build import SOURCE

MODULE, RECORD = SOURCE.with_name("engine.wasm"), SOURCE.with_name("engine.json")
EXPORTS = ("meshnet_run", "meshnet_bytes", "meshnet_classes", "meshnet_statistics", "meshnet_norm", "malloc", "free")
# Fixed 128-bit SIMD: in all browsers since 2023. Relaxed SIMD would let results depend on the CPU.
FLAGS = ("-target", "wasm32-wasi", "-O3", "-std=c++17", "-msimd128", "-mbulk-memory", "-fignore-exceptions",
         "-fno-rtti", "-fno-sanitize=all", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
         "-mexec-model=reactor", "-s", *(f"-Wl,--export={name}" for name in EXPORTS))
TIMEOUT = 1800  # seconds; the first time the compiler builds its own libraries


def source_hash() -> str:
    """The hash of the kernels' source and of the flags."""
    sources = [SOURCE, *sorted((SOURCE.parent / "cpu").glob("*.h"))]
    text = "\0".join([*(path.read_text(encoding="utf-8") for path in sources), " ".join(FLAGS)])
    return hashlib.sha256(text.encode()).hexdigest()


def compile_module() -> bytes:
    """The module, compiled.

    Raises:
        UserError: where the compiler of requirements-web.txt is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "engine.wasm"
        command = [sys.executable, "-m", "ziglang", "c++", *FLAGS, SOURCE.name, "-o", str(target)]
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
    module = compile_module()
    from importlib.metadata import version

    with whole_file(MODULE) as temporary:
        temporary.write_bytes(module)
    write_json(RECORD, {"compiler": f"ziglang {version('ziglang')}", "flags": list(FLAGS), "source": source_hash(),
                        "module": hashlib.sha256(module).hexdigest(), "bytes": len(module)})
    print(f"{MODULE}: {len(module):,} bytes")


if __name__ == "__main__":
    run_script(main)
