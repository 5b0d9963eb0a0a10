"""Programs in C++ that are compiled on the machine on which they run, once for all processes of a user."""

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

#: The convolutions of `helpers.haca3.fast.winograd`.
WINOGRAD = Path(__file__).parent / "haca3" / "fast" / "winograd.cpp"
#: Those of `helpers.haca3.fast.fusion`.
FUSION = WINOGRAD.with_name("fusion.cpp")

# What a compiler is asked for, until it can: the instructions of this very processor, or none in particular.
_FLAGS = (("-march=native",), ())


@functools.cache
def library(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """Compile a C++ file and load it, or load what an earlier process has compiled.

    Compiled programs are kept in the user's folder for caches, by their source, compiler and instructions, so
    that several kinds of machines can share that folder.

    Parameters
    ----------
    source : Path

    Returns
    -------
    library : ctypes.CDLL or None
        None where there is no C++ compiler, or where nothing that it makes can be loaded.
    why : str
        Then the reason, else empty.
    """
    compilers = (shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
    compiler = next(filter(None, compilers), None)
    if not compiler:
        return None, "there is no C++ compiler here (g++, clang++, or CXX)"
    for flags in _FLAGS:
        with contextlib.suppress(
            OSError, RuntimeError
        ):  # No home, a folder that cannot be written, or of which nothing may run.
            return _loaded(compiler, flags, source, _cache()), ""
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
            return _loaded(compiler, flags, source, Path(folder)), ""
    return None, f"{compiler} makes nothing that can be loaded here"


def _cache() -> Path:
    """The folder of the user for what can be made again."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "resolution-matters"


def _loaded(compiler: str, flags: tuple[str, ...], source: Path, folder: Path) -> ctypes.CDLL:
    """The library of a source in a folder; OSError if it is not there and cannot be made."""
    # The macros of a compiler name its version and every instruction that it will use.
    macros = subprocess.run([compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True)
    digest = hashlib.sha256(
        b"\0".join((macros.stdout, " ".join(flags).encode(), source.read_bytes()))
    ).hexdigest()
    path = folder / f"{source.stem}-{digest[:16]}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            built = Path(place) / path.name
            command = [compiler, "-O3", "-std=c++17", "-shared", "-fPIC", *flags, "-o", built, source]
            if subprocess.run(command, capture_output=True).returncode:
                raise OSError(f"{compiler} does not compile {source}")
            built.replace(path)  # whole or not at all, whatever else compiles it at the same time
    return ctypes.CDLL(str(path))
