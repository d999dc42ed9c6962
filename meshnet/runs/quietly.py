"""A launcher without its own traceback, whose exit code is that of the process that failed.

    python -m meshnet.runs.quietly accelerate launch --config_file accelerate_configs/many_gpus.yaml train.py …
    python -m meshnet.runs.quietly torchrun --nproc_per_node 2 infer.py …

A process that fails has said why in one line. torchrun and accelerate launch print a traceback of their own below it
and end with exit code 1. Nothing else is changed: the words behind ``quietly`` are the launcher's command.
"""

import logging
import runpy
import subprocess
import sys

MODULES = {"torchrun": "torch.distributed.run", "accelerate launch": "accelerate.commands.launch"}


def main(words: list[str]) -> int:
    """Run the launcher that ``words`` begin with; the exit code."""
    name = words[0] if words and words[0] in MODULES else " ".join(words[:2])
    if name not in MODULES:
        print(f"error: python -m meshnet.runs.quietly: found {name or 'nothing'}, expected one of {', '.join(MODULES)} "
              "and what it is to launch", file=sys.stderr)
        return 2
    logging.disable(logging.CRITICAL)  # what it chose itself, and once more that a process failed
    sys.argv = [name, *words[len(name.split()):]]
    try:
        runpy.run_module(MODULES[name], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # before the launcher has set its own handlers
        return 130
    except Exception as error:
        code = code_of(error)
        if code is None:
            raise
        return code
    return 0


def code_of(error: Exception) -> int | None:
    """The exit code of the first process that failed, where a launcher's error says just that; else None."""
    if hasattr(error, "get_first_failure"):  # torch.distributed.elastic.multiprocessing.ChildFailedError
        code = error.get_first_failure()[1].exitcode
    elif isinstance(error, subprocess.CalledProcessError):
        code = error.returncode
    elif hasattr(error, "sigval"):  # torch.distributed.elastic.multiprocessing.api.SignalException
        code = -int(error.sigval)
    else:
        return None
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    if __spec__ is None:  # by its path, as a job is started: the files beside it are no modules of the launcher
        del sys.path[0]
    sys.exit(main(sys.argv[1:]))
