"""Steps of every kind under compute-sanitizer: memcheck, racecheck, initcheck and synccheck.

    python tests/sanitize_steps.py [TOOL ...]

Exit status: 0 clean, 1 faults found, 2 compute-sanitizer is missing or does not work here. A tool
that finds faults where there are none, in faulty_kernels.cu, is named and passed over. With
BERTADAM_CUDA_LINEINFO=1 in the build its reports name source lines.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # where the package is not installed
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Racecheck and synccheck of torch's kernels would take minutes. Initcheck has to see all writes.
OURS = ("--kernel-name", "kns=_ZN8bertadam4cuda")
FILTERS = {"memcheck": (), "racecheck": OURS, "initcheck": (), "synccheck": OURS}
TOO_LONG = 550  # seconds for one tool

# Optimizers by the module and the class of the tests' twins, and their settings.
BERTADAM, ADAM = ("backends", "Twin"), ("adam_cases", "AdamTwin")
LAMB, LARS = ("layerwise_cases", "LambTwin"), ("layerwise_cases", "LarsTwin")
MODES: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "per tensor": (BERTADAM, {}),
    "global": (BERTADAM, {"clip": "global"}),
    "no clip": (BERTADAM, {"max_grad_norm": 0.0, "on_nonfinite": "propagate"}),
    "no clip, skip": (BERTADAM, {"max_grad_norm": 0.0, "on_nonfinite": "skip"}),
    "null steps": (BERTADAM, {"lr": 0.0}),
    "AMSGrad": (ADAM, {"amsgrad": True, "max_grad_norm": 1.0, "clip": "per_tensor"}),
    "LAMB": (LAMB, {}),
    "LAMB, no clip": (LAMB, {"max_grad_norm": 0.0}),
    "LARS": (LARS, {}),
}
# Blocks and retained draws. One block has fewer slots than the largest tensor has chunks, so that
# the last shape postpones updates, where not all norms are waited for.
SHAPES = ((0, -1), (5, 0), (1, 7), (1, 10**6))
SIZES = (0, 1, 3, 33, 1023, 1025, 4096, 4099, 90_001)


def take_steps() -> None:
    """Two steps in every mode and shape, compared with the CPU's."""
    import torch
    from backends import odd_grads, same
    from torch import nn

    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.randn(n + 4)[i % 4 : i % 4 + n]) for i, n in enumerate([*SIZES, *SIZES])
    ]

    def bits(device: str, mode: str, shape: tuple[int, int]) -> list[torch.Tensor]:
        (module, kind), settings = MODES[mode]
        twin = getattr(importlib.import_module(module), kind)(
            copy.deepcopy(params), device, **settings
        )
        for group in twin.opt.param_groups:
            group.update(settings)  # also what the groups of a twin have of their own
        for plan in twin.opt._plans:
            plan.workers, plan.retained_draws = shape
        for step in range(2):
            twin.step(odd_grads(params, step))
        return twin.bits()

    for mode in MODES:
        expected = bits("cpu", mode, (0, -1))
        for shape in SHAPES:
            if not same(bits("cuda", mode, shape), expected):
                sys.exit(f"{mode}, {shape}: not the bits of the CPU")


def find(name: str) -> str | None:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which(name, path=os.pathsep.join(places))


def run(command: list[str]) -> tuple[int, str]:
    # Without torch's cache, memory that is freed or not yet written is known as such.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TOO_LONG,
            env=env,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return 124, output.decode() if isinstance(output, bytes) else output
    return done.returncode, done.stdout


def give_up(reason: str, output: str = "") -> int:
    print(f"sanitize: {reason}\n{output}".rstrip())
    return 2


def check(tools: list[str], sanitizer: str, faulty: str) -> int:
    status, judged = 0, False
    for tool in tools:
        # Errors of the runtime's own calls are looked at elsewhere; torch makes some on purpose.
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", "--report-api-errors", "no"]
        command += FILTERS[tool]
        code, output = run([*command, faulty, tool])
        if code != 1 or "SUMMARY" not in output:
            return give_up(f"{tool} does not notice a fault, so it does not work here:", output)
        code, output = run([*command, faulty, "handover"])
        if code == 1 and "SUMMARY" in output:
            # Racecheck: one lane arrives for a warp, and it takes what the others wrote for a race.
            print(f"sanitize: {tool}: cannot judge, it finds faults in a kernel that has none")
            continue
        if code:
            return give_up(f"{tool} does not work on a kernel without faults:", output)
        judged = True
        start = time.monotonic()
        code, output = run([*command, sys.executable, str(Path(__file__)), "--steps"])
        if code:
            status = 1
            print(output)
        verdict = "takes too long" if code == 124 else "FAULTS" if code else "clean"
        print(f"sanitize: {tool}: {verdict} ({time.monotonic() - start:.0f} s)", flush=True)
    return status if judged else give_up("none of the tools can judge")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(TOOLS)}")
    parser.add_argument("--steps", action="store_true", help="only take the steps")
    arguments = parser.parse_args()
    if unknown := set(arguments.tools) - set(TOOLS):
        parser.error(f"unknown tools: {', '.join(sorted(unknown))}")
    if arguments.steps:
        take_steps()
        return 0
    sanitizer, nvcc = find("compute-sanitizer"), find("nvcc")
    if sanitizer is None or nvcc is None:
        missing = "compute-sanitizer" if sanitizer is None else "nvcc"
        return give_up(f"{missing} is neither on PATH nor in CUDA_HOME or /usr/local/cuda")
    code, output = run([sys.executable, str(Path(__file__)), "--steps"])
    if code:
        return give_up("the steps do not work without compute-sanitizer either:", output)
    with tempfile.TemporaryDirectory() as folder:
        faulty = f"{folder}/faulty_kernels"
        source = str(HERE / "faulty_kernels.cu")
        code, output = run([nvcc, "-arch=native", "-lineinfo", "-o", faulty, source])
        if code:
            return give_up("faulty_kernels.cu cannot be built:", output)
        return check(arguments.tools or list(TOOLS), sanitizer, faulty)


if __name__ == "__main__":
    sys.exit(main())
