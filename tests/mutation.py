"""Change each function between a high-resolution image and its score, one by one, and say which golden
results see it.

A stage is computed again when its version is raised (`helpers.pipeline.cache.STAGES`), and a golden result
says when that was forgotten. This script proves the second half: what a function returns is changed a little,
and the golden results of ``tests/pipeline/test_stages_golden.py`` are computed again. A line per function:
the stages whose results changed, whose versions would have to be raised. A function without a result is made
to fail. Functions that no golden result sees stand at the end. Some ten minutes: ``python
tests/mutation.py``; or rooms as arguments, such as ``analysis.metrics``.
"""

import contextlib
import functools
import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "pipeline"))
import test_stages_golden as golden  # noqa: E402

import helpers  # noqa: E402

STAGES = ("degradation", "registration", "harmonization", "scores")
ROOMS = (
    "linear",
    "grid",
    "acquisition.rf_pulse",
    "acquisition.slice_profile",
    "acquisition.degradation",
    "registration",
    "analysis.metrics",
    "haca3.networks",
    "haca3.checkpoint",
    "haca3.slicing",
    "haca3.inputs",
    "haca3.slice_networks",
    "haca3.harmonizer",
    "haca3.fast.fusion",
    "haca3.fast.layers",
    "haca3.fast.memory",
    "haca3.fast.threads",
    "haca3.fast.winograd",
)


class Unchangeable(Exception):
    """Raised in place of a result that has no number to change."""


def changed(result):
    """The result of a function, a little different: numbers by a twentieth, one bit in sixteen."""
    import torch

    if isinstance(result, bool | np.bool_):
        return not result
    if isinstance(result, int | np.integer):
        return result + 1
    if isinstance(result, float | np.floating):
        return result * 1.05 + 1e-3
    if isinstance(result, np.ndarray):
        if result.dtype == bool:
            return result ^ (np.arange(result.size).reshape(result.shape) % 16 == 0)
        if np.issubdtype(result.dtype, np.number) and result.size:
            wave = 1.03 + 0.05 * np.cos(np.arange(result.size)).reshape(result.shape)
            return (result * wave + (1 if np.issubdtype(result.dtype, np.integer) else 1e-3)).astype(
                result.dtype
            )
    if isinstance(result, torch.Tensor) and result.is_floating_point():
        return (
            result
            * (
                1.03
                + 0.05 * torch.cos(torch.arange(result.numel(), dtype=torch.float32)).reshape(result.shape)
            )
            + 1e-3
        )
    if isinstance(result, tuple | list) and not hasattr(result, "_fields"):
        return type(result)(changed(part) for part in result)
    if isinstance(result, dict):
        return {name: changed(part) for name, part in result.items()}
    raise Unchangeable


def functions():
    """(module, owner, name, function) of what our modules between image and score define."""
    for room in sys.argv[1:] or ROOMS:
        module = importlib.import_module(f"helpers.{room}")
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    # What a dataclass writes for itself is not ours.
                    if inspect.isfunction(function) and function.__code__.co_filename == module.__file__:
                        yield room, value, method, function
            elif callable(value):
                yield room, module, name, value


@contextlib.contextmanager
def mutated(owner, name, function):
    """The function with a changed result, wherever a module has it by name; how often it was called."""
    calls = []

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        calls.append(1)
        result = function(*args, **kwargs)
        if name == "__init__" or result is None:
            raise Unchangeable
        return changed(result)

    if hasattr(function, "cache_clear"):
        wrapper.cache_clear = function.cache_clear
    places = [(owner, name)] + [
        (module, key)
        for module in [*sys.modules.values()]
        if getattr(module, "__name__", "").startswith("helpers")
        for key, value in vars(module).items()
        if value is function and (module, key) != (owner, name)
    ]
    try:
        for place, key in places:
            setattr(place, key, wrapper)
        yield calls
    finally:
        for place, key in places:
            setattr(place, key, function)


def forget():
    """Empty what our modules remember of earlier calls, the cohort apart."""
    for module in [*sys.modules.values()]:
        if getattr(module, "__name__", "").startswith("helpers") and ".cohort" not in module.__name__:
            for value in [*vars(module).values()]:
                with contextlib.suppress(Exception):
                    value.cache_clear()


def same(stage, reference):
    try:
        now = golden.numbers(stage)
    except Exception:  # noqa: BLE001 - a change may well break what comes after it: it is seen
        return False
    pairs = zip(now, reference, strict=True)
    return all(np.allclose(one, other, rtol=golden.TOLERANCE, atol=golden.TOLERANCE) for one, other in pairs)


def main():
    for each in pkgutil.walk_packages(helpers.__path__, "helpers."):
        importlib.import_module(each.name)
    reference = {stage: golden.numbers(stage) for stage in STAGES}
    unseen, count = [], 0
    for room, owner, name, function in [*functions()]:
        seen, called = [], False
        for stage in STAGES:
            forget()
            with mutated(owner, name, function) as calls:
                if not same(stage, reference[stage]):
                    seen.append(stage)
            called |= bool(calls)
        where = f"{room}.{owner.__name__ + '.' if inspect.isclass(owner) else ''}{name}"
        count += 1
        if seen:
            print(f"{where}: {', '.join(seen)}", flush=True)
        else:
            unseen.append(f"{where}{'' if called else ' (not called)'}")
    print(f"{count} functions, {count - len(unseen)} seen. Not seen:", *unseen, sep="\n  ")


if __name__ == "__main__":
    main()
