"""A process that has imported what tests import and runs each request in a fork of itself: starting anew would cost more than most tests.

Reads requests as lines of JSON, the arguments of pytest and a file for the output; answers with the process id, then with its exit code.
"""

import contextlib
import importlib
import json
import os
import sys

BEFOREHAND = (
    *("pytest", "numpy", "torch", "PIL.Image", "hypothesis.strategies", "safetensors.torch", "tokenizers", "transformers"),
    *("transformers.modeling_utils", "transformers.models.llama.modeling_llama", "transformers.models.clip.modeling_clip"),
    *("transformers.models.llava.modeling_llava", "torch._dynamo", "triton"),
)  # fmt: skip


def serve() -> None:
    """Answer requests until there are no more."""
    for name in BEFOREHAND:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            _run(request["arguments"], request["output"])
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _run(arguments: list[str], output: str) -> None:
    """Run the tests in a session of its own, and end."""
    import pytest

    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 3
    try:
        code = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
