"""The programs in the images of a rehearsal: stand-ins for a server, its client, and the tool that lists GPUs.

A benchmark's script calls ``python -m launcher.rehearsal.image_stand_in PROGRAM ARGUMENTS…`` by the program's name. The
server answers on its port, but serves no model; the client sends one request, and writes numbers of
`launcher.rehearsal.results`. Their output is marked as a rehearsal.

Environment: LAUNCHER_REHEARSAL_SECONDS (the time of a measurement, 0.3), LAUNCHER_REHEARSAL_FAULTS
(`launcher.rehearsal.engine_stand_in.requested_faults`), and from the workflow GPU_COUNT, CONC and the variables of
RUN_EVAL.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

OUT_OF_MEMORY = "rehearsal: torch.OutOfMemoryError: CUDA out of memory"


def serve(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """``vllm serve MODEL --port P``, ``sglang serve --model-path MODEL --port P``: answers until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--model-path")
    parser.add_argument("--port", type=int, required=True)
    arguments, _ = parser.parse_known_args(words)
    model, faults = arguments.model_path or arguments.model, _faults(environ)
    if model is None or (model.startswith("/") and not Path(model).is_dir()):
        return _print(f"ValueError: model path {model} does not exist", code=1)
    _print(f"rehearsal: no model is served; {model} would be")
    time.sleep(float(faults.get("slow-start") or 0))
    try:
        listener = socket.create_server(("127.0.0.1", arguments.port))
    except OSError as error:
        return _print(f"OSError: cannot bind to port {arguments.port}: {error.strerror}", code=1)
    _print(f"rehearsal: ready on port {arguments.port}")
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            request = connection.recv(4096)
            if request.startswith(b"POST") and "worker-death" in faults:
                return _print(OUT_OF_MEMORY, code=137)
            if request:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def measure(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """``benchmark_serving``: sends the server a request, and writes the result of one concurrency."""
    from launcher.rehearsal import results
    from launcher.rehearsal.results import Topology

    parser = argparse.ArgumentParser()
    for name in ("model", "backend", "result-filename", "result-dir"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "input-len", "output-len", "num-prompts", "max-concurrency"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments, _ = parser.parse_known_args(words)
    faults, concurrency = _faults(environ), arguments.max_concurrency
    if not _server_answers(arguments.port):
        return _print("ConnectionResetError: the server went away", code=1)
    time.sleep(float(environ.get("LAUNCHER_REHEARSAL_SECONDS") or 0.3))
    while "hang" in faults:
        time.sleep(1)
    gpus = int(environ.get("GPU_COUNT") or 1)
    document = results.benchmark_result(
        Topology(1, gpus, 1, gpus, aggregated=True),
        concurrency,
        arguments.input_len,
        arguments.output_len,
        model=arguments.model,
        prompts_each=max(1, arguments.num_prompts // concurrency),
        seed=arguments.result_filename,
    )
    if "partial-results" not in faults:
        path = Path(arguments.result_dir, f"{arguments.result_filename}.json")
        path.write_text(results.result_text({**document, "backend": arguments.backend}, faults))
    _print(f"rehearsal: concurrency {concurrency}: nothing was measured, and the numbers are made up")
    return int(faults.get("exit") or 0)


def evaluate(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """``lm_eval``: writes the files of an evaluation to the working directory."""
    from launcher.rehearsal import results

    # One side serves prefill and decode; an environment for several nodes names both.
    sizes = {"TP": environ.get("TP", ""), "EP": environ.get("EP_SIZE", "")}
    sides = {f"{side}_{name}": size for side in ("PREFILL", "DECODE") for name, size in sizes.items()}
    documents = results.eval_documents({**environ, **sides}, [int(environ["CONC"])], environ["MODEL"])
    for name, document in documents.items():
        Path(name).write_text(json.dumps(document) + "\n")
    return _print("rehearsal: evaluated")


def list_gpus(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """``nvidia-smi``: a line for each GPU, although there is none."""
    print("timestamp, index, power.draw [W], note")
    for index in range(int(environ.get("GPU_COUNT") or 1)):
        print(f"{time.strftime('%Y/%m/%d %H:%M:%S.000')}, {index}, 0.00, rehearsal: there is no GPU")
    return 0


PROGRAMS: Mapping[str, Callable[[Sequence[str], Mapping[str, str]], int]] = {
    "vllm": serve,
    "sglang": serve,
    "benchmark_serving": measure,
    "lm_eval": evaluate,
    "nvidia-smi": list_gpus,
}
"""The programs by their names."""


def _faults(environ: Mapping[str, str]) -> Mapping[str, str]:
    if not environ.get("LAUNCHER_REHEARSAL_FAULTS"):
        return {}
    from launcher.rehearsal.engine_stand_in import requested_faults  # the engine's other half costs half a second

    return requested_faults(environ)


def _server_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\n\r\n")
            return bool(connection.recv(4096))
    except OSError:
        return False


def _print(text: str, *, code: int = 0) -> int:
    print(text, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](sys.argv[2:], os.environ))
