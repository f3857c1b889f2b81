"""Build bertadam_cuda._C; the metadata is in pyproject.toml, the environment in CONTRIBUTING.md.

The binding (csrc/binding) is an ordinary torch C++ extension. Everything else in csrc knows no
torch: it is compiled here, by g++ and nvcc, into objects that are linked into the extension. So one
file serves CPU torch with and without nvcc, and CUDA torch with and without a visible GPU. torch's
CUDAExtension cannot: it refuses to work when torch itself is a CPU build.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    TORCH_ERROR = None
except ImportError as error:  # an sdist and the metadata need no torch; only compiling does
    TORCH_ERROR, BuildExtension, CppExtension = error, build_ext, Extension

ROOT = Path(__file__).resolve().parent
PACKAGE = "bertadam_cuda"
LOCAL_VERSION = os.environ.get("BERTADAM_CUDA_LOCAL_VERSION")
VERSION = re.search(r'"(\d[^"]*)"', (ROOT / PACKAGE / "_version.py").read_text())[1]
VERSION += f"+{LOCAL_VERSION}" if LOCAL_VERSION else ""

DEFAULT_ARCHS = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
# The CPU backend promises the bits of the GPU: nothing may be contracted into an fma that the
# source does not spell. The other two -f options change no bits and let loops vectorise.
CXX_FLAGS = "-O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden -g0"
NVCC_FLAGS = "-std=c++17 -O3 --fmad=false -Xcompiler -fPIC,-fvisibility=hidden,-ffp-contract=off"
# at::parallel_for is a header: without this flag it runs everything on one thread, silently. The
# library is torch's own copy, which has the same name and is loaded first.
OPENMP = ["-fopenmp"]
ISA_FLAGS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mprefer-vector-width=512",
}
ISAS = list(ISA_FLAGS) if platform.machine() in ("x86_64", "AMD64") else ["baseline"]
ISA_SOURCE = "csrc/cpu/worker.cpp"  # compiled once per level; everything else once


def fail(message: str) -> SystemExit:
    return SystemExit(f"\n*** {PACKAGE}: {message}\n")


def env_flag(name: str) -> bool | None:
    """True, False, or None where it is unset or 'auto'."""
    value = os.environ.get(name, "").strip() or "auto"
    if value not in ("auto", "1", "0"):
        raise fail(f"{name}={value!r}, expected auto, 1 or 0")
    return None if value == "auto" else value == "1"


def env_count(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdigit() or int(value) < 1:
        raise fail(f"{name}={value!r}, expected a positive whole number")
    return int(value)


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise fail(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def sources(*patterns: str) -> list[str]:
    found = (path for pattern in patterns for path in (ROOT / "csrc").glob(pattern))
    return sorted(str(path.relative_to(ROOT)) for path in found)


class Nvcc:
    """A CUDA compiler: what it can generate, and where its static runtime lies."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.version = re.search(r"release (\d+\.\d+)", output_of(path, "--version"))[1]
        self.known = output_of(path, "--list-gpu-code").split()
        # nvcc may be a wrapper script, or lie in a conda or pip tree: only it knows its toolkit.
        plan = output_of(path, "--dryrun", "-x", "cu", os.devnull, "-c", "-o", os.devnull)
        places = re.findall(r'-L([^\s"]+)', "".join(re.findall(r"LIBRARIES=.*", plan)))
        for top in re.findall(r"TOP=(\S+)", plan):
            places += [f"{top}/lib64", f"{top}/lib"]
        places = [place for place in places if Path(place, "libcudart_static.a").exists()]
        if not places:
            raise fail(f"no libcudart_static.a beside {path}; install the CUDA runtime's dev files")
        self.library_dir = places[0]

    def codes(self) -> list[str]:
        """What to generate: sm_90 is machine code, compute_90 is PTX."""
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
        where, codes = f"TORCH_CUDA_ARCH_LIST={asked!r}", []
        for item in re.split(r"[;,\s]+", asked or DEFAULT_ARCHS):
            arch = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", item)
            if arch is None:
                raise fail(f"{where}: cannot read {item!r}, expected the form {DEFAULT_ARCHS!r}")
            number = arch[1] + arch[2] + arch[3]
            if f"sm_{arch[1]}{arch[2]}" in self.known:
                codes += [f"sm_{number}", f"compute_{number}"] if arch[4] else [f"sm_{number}"]
            elif asked:
                raise fail(
                    f"{where}: nvcc {self.version} cannot generate {item}, only {self.known}"
                )
        if not asked and not codes[-1].startswith("compute_"):
            codes.append(codes[-1].replace("sm_", "compute_"))  # an older nvcc: its newest as PTX
        return codes


def find_nvcc() -> Nvcc | None:
    """The nvcc to use, or None: no CUDA. A CUDA torch never gets a CPU-only build by accident."""
    wanted = env_flag("BERTADAM_CUDA_FORCE_CUDA")
    if wanted is False:
        return None
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            if not Path(home, "bin/nvcc").exists():
                raise fail(f"{name}={home} has no bin/nvcc; correct it or unset it")
            return Nvcc(f"{home}/bin/nvcc")
    path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if path is None and (wanted or torch.version.cuda):
        need = (
            "BERTADAM_CUDA_FORCE_CUDA=1" if wanted else f"a CUDA build of torch {torch.__version__}"
        )
        raise fail(
            f"{need} needs nvcc, and there is none in CUDA_HOME, on PATH or in /usr/local/cuda; "
            "install the CUDA toolkit, or set BERTADAM_CUDA_FORCE_CUDA=0 for a CPU-only build"
        )
    return Nvcc(path) if path else None


def compile_object(
    command: list[str], identity: str, source: str, target: Path, *extra: str
) -> str:
    """Compile, unless the object at hand came from this command, this compiler and these files.

    `extra` are options that cannot change the object.
    """
    depfile, stamp = target.with_suffix(".d"), target.with_suffix(".key")
    command = [*command, "-c", source, "-o", str(target), "-MMD", "-MF", str(depfile)]

    def key() -> str:
        names = depfile.read_text().split(": ", 1)[1].replace("\\\n", " ").split()
        parts = [identity, *command, *(name + (ROOT / name).read_text() for name in names)]
        if any((ROOT / name).stat().st_mtime > started for name in names):
            return "changed during compilation"
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    started = time.time()
    try:
        if target.exists() and stamp.read_text() == key():
            return str(target)
    except FileNotFoundError:  # never compiled, or one of its headers is gone
        pass
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    print(shlex.join([*command, *extra]), flush=True)
    if subprocess.run([*command, *extra], cwd=ROOT).returncode:
        raise fail(f"{source} does not compile; the command and its messages are above")
    stamp.write_text(key())
    return str(target)


def compile_objects(
    nvcc: Nvcc | None, codes: list[str], defines: list[str], out: Path
) -> list[str]:
    """Compile everything that knows no torch."""
    cxx = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]
    identity = output_of(*cxx, "--version")
    cxx += ["-std=c++17", *CXX_FLAGS.split(), "-fPIC", "-Wall", "-Wextra", "-Icsrc"]
    n_jobs = env_count("MAX_JOBS", len(os.sched_getaffinity(0)))
    work = []
    if nvcc is not None:  # first, because it takes longest
        kernels = sources("cuda/**/*.cu")
        n_threads = env_count("BERTADAM_CUDA_NVCC_THREADS", max(1, n_jobs // max(1, len(kernels))))
        command = [nvcc.path, *NVCC_FLAGS.split(), "-Icsrc"]
        command += [f"-gencode=arch={c.replace('sm_', 'compute_')},code={c}" for c in codes]
        command += ["-lineinfo"] if env_flag("BERTADAM_CUDA_LINEINFO") else []
        command += shlex.split(os.environ.get("BERTADAM_CUDA_NVCC_FLAGS", ""))
        for source in kernels:
            target = out / f"{source}.o"
            work.append((command, nvcc.version, source, target, "--threads", str(n_threads)))
    for isa in ISAS:
        command = [*cxx, *ISA_FLAGS[isa].split(), f"-DBERTADAM_ISA={isa}"]
        work.append((command, identity, ISA_SOURCE, out / f"{ISA_SOURCE}.{isa}.o"))
    for source in sources("core/*.cpp", "cpu/*.cpp"):
        if source != ISA_SOURCE:
            work.append(([*cxx, *defines], identity, source, out / f"{source}.o"))
    with ThreadPoolExecutor(n_jobs) as pool:
        return list(pool.map(lambda job: compile_object(*job), work))


class BuildC(BuildExtension):
    """Compiles the torch-free objects, then lets torch compile the binding and link it all."""

    def run(self) -> None:
        # torch looks for ninja on PATH; in a virtual environment it lies beside the interpreter.
        os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")
        if TORCH_ERROR is not None:
            raise fail(
                f"torch is not importable where the build runs ({TORCH_ERROR}); install it, then "
                "build without isolation:\n    pip install torch==2.13.0 ninja setuptools wheel\n"
                "    pip install --no-build-isolation ."
            )
        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
            raise fail(f"torch is {torch.__version__}, expected >= 2.11; install a newer torch")
        super().run()

    def build_extensions(self) -> None:
        nvcc = find_nvcc()
        codes = nvcc.codes() if nvcc else []
        defines = [f"-DBERTADAM_ISA_{isa.upper()}=1" for isa in ISAS if isa != "baseline"]
        defines += ["-DBERTADAM_WITH_CUDA"] if nvcc else []
        (extension,) = self.extensions
        objects = Path(self.build_temp).resolve() / "objects"
        extension.extra_objects = compile_objects(nvcc, codes, defines, objects)
        if nvcc is not None:
            extension.library_dirs.append(nvcc.library_dir)
            extension.libraries += ["cudart_static", "rt", "pthread", "dl"]
        # torch's version is in the command line, so that ninja never reuses an object compiled
        # against another torch in the same place. No -std here: torch adds the one it needs.
        defines += [f"-DBERTADAM_TORCH_VERSION={torch.__version__}"]
        extension.extra_compile_args = {"cxx": [*CXX_FLAGS.split(), *OPENMP, *defines]}
        self.force = True  # always link: setuptools does not see that objects or flags changed
        super().build_extensions()
        self.build_info = {
            "version": VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "nvcc": nvcc.version if nvcc else None,
            "archs": codes,
            "isas": ISAS,
        }
        self.write_build_info(Path(self.build_lib))

    def copy_extensions_to_source(self) -> None:  # in-place and editable builds end with this
        super().copy_extensions_to_source()
        self.write_build_info(ROOT)

    def write_build_info(self, where: Path) -> None:
        path = where / PACKAGE / "_build_info.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.build_info, indent=2) + "\n")


class SourceDist(sdist):
    """An sdist with all sources, tests and benchmarks, and nothing that a build left behind."""

    def make_distribution(self) -> None:
        tops = [".ci", ".clang-format", "CONTRIBUTING.md", "LICENSE", "Makefile"]
        files = [ROOT / top for top in tops]
        for top in (".ci", "csrc", PACKAGE, "tests", "bench"):
            files += (ROOT / top).rglob("*")
        names = {str(path.relative_to(ROOT)) for path in files if path.is_file()}
        built = re.compile(r"__pycache__|_build_info\.json$|\.(so|o|pyc)$")
        names = {name for name in names.union(self.filelist.files) if not built.search(name)}
        self.filelist.files = sorted(names)
        super().make_distribution()


if __name__ == "__main__":
    setup(
        version=VERSION,
        license="Apache-2.0",
        ext_modules=[
            CppExtension(
                f"{PACKAGE}._C",
                sources("binding/*.cpp"),
                include_dirs=[str(ROOT / "csrc")],
                extra_link_args=["-Wl,--strip-debug", *OPENMP],
                depends=sources("**/*.h", "**/*.cuh", "**/*.cu", "**/*.cpp"),
            )
        ],
        cmdclass={"build_ext": BuildC, "sdist": SourceDist},
    )
