"""Checkpoints of HACA3: read the published layout without ever running what a file says, and write it.

A checkpoint is a dict written by ``torch.save`` with one state dict per network (and, from training,
optimizer and scheduler state, which is ignored here). A pickle can ask for any Python call; only the calls
that rebuild tensors are granted.
"""

import collections
import pickle
import types
from pathlib import Path

import torch
from torch import nn

from helpers.haca3 import networks
from helpers.volumes.files import disguise

_REBUILD = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}
_HARMLESS = {(module, name) for module in ("builtins", "__builtin__") for name in ("getattr", "dict")}
_HARMLESS.add(("collections", "defaultdict"))

_ACCEPTED = "accepted is what torch.save wrote of a dict of state dicts"


class _Inert:
    """Stands for an object of the file that we neither need nor build."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return _Inert()

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass


class _RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds tensors; replaces what old learning-rate schedulers stored; refuses everything else."""

    def find_class(self, module, name):
        if (module, name) in _REBUILD:
            return _REBUILD[module, name]
        if module == "torch" and name.endswith("Storage") and hasattr(torch, name):
            return getattr(torch, name)
        # CyclicLR of torch < 2.0 stored a bound method: getattr(<CyclicLR with its optimizer>,
        # "_triangular_scale_fn").
        if (
            (module, name) in _HARMLESS
            or module.split(".")[0] == "numpy"
            or module.startswith("torch.optim.")
        ):
            return _Inert
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _restricted_load(file, **kwargs):
    return _RestrictedUnpickler(file, **kwargs).load()


# What torch.load wants of a pickle module.
_restricted_pickle = types.SimpleNamespace(
    __name__="restricted_pickle",
    Unpickler=_RestrictedUnpickler,
    load=_restricted_load,
    UnpicklingError=pickle.UnpicklingError,
)


def load(path: str | Path) -> dict:
    """Read a checkpoint without running any code of the file.

    Parameters
    ----------
    path : str or Path
        Written by ``torch.save``.

    Returns
    -------
    dict
        On the CPU. Objects that are neither tensors nor plain values come as inert placeholders.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no checkpoint, is truncated, or asks for calls beyond those that rebuild tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: {_ACCEPTED}")
    if reason := disguise(path):
        raise ValueError(f"{path}: not a readable checkpoint ({reason}): {_ACCEPTED}")
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            content = torch.load(
                path, map_location="cpu", weights_only=False, pickle_module=_restricted_pickle
            )
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("invalid load key"):  # What pickle says of any first byte that it does not know.
            start = path.read_bytes()[:16]
            raise ValueError(
                f"{path}: not a readable checkpoint (it begins with {start!r}): {_ACCEPTED}"
            ) from None
        raise ValueError(f"{path}: refused, nothing of it was run ({reason}): {_ACCEPTED}") from None
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint ({reason}): {_ACCEPTED}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}: {_ACCEPTED}")
    return content


def _fill(module: nn.Module, state: dict, what: str) -> nn.Module:
    """Load `state` into `module` as float32, or say in one line which tensor does not fit."""
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    for key, shape in expected.items():
        if not isinstance(state.get(key), torch.Tensor):
            raise ValueError(f"{what}.{key} is missing: expected shape {shape}")
        if tuple(state[key].shape) != shape:
            raise ValueError(f"{what}.{key} has shape {tuple(state[key].shape)}: expected {shape}")
        if not torch.isfinite(state[key]).all():
            raise ValueError(f"{what}.{key} has values that are NaN or infinite: expected finite weights")
    for key in state:
        if key not in expected:
            names = "accepted are the tensors of the published layout alone"
            raise ValueError(f"{what}.{key} is a tensor that this network does not have: {names}")
    module.load_state_dict({key: state[key].float() for key in expected})
    return module.eval().requires_grad_(False)


def _state(content: dict, name: str, path) -> dict:
    if not isinstance(content.get(name), dict):
        found = ", ".join(map(str, content)) or "nothing"
        raise ValueError(f"{path}: {name} is missing, found {found}: accepted is a checkpoint with {name}")
    return content[name]


def _base(state: dict, what: str) -> int:
    """Width of a UNet, read from its first convolution."""
    weight = state.get("in_conv.weight")
    if not isinstance(weight, torch.Tensor) or weight.ndim != 4:
        raise ValueError(f"{what}.in_conv.weight is missing: expected a 4D tensor")
    return weight.shape[0]


def load_harmonization(path: str | Path) -> dict[str, nn.Module]:
    """The six networks of a harmonization checkpoint; their widths follow from its tensors.

    Parameters
    ----------
    path : str or Path
        Published layout; float16 is cast to float32.

    Returns
    -------
    dict of str to torch.nn.Module
        ``beta_encoder``, ``theta_encoder``, ``eta_encoder``, ``decoder``, ``attention_module``,
        ``patchifier``.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read`; ValueError too if a tensor is missing, of another shape, not finite, or too many.
    """
    content = load(path)
    beta, decoder = (
        _base(_state(content, name, path), f"{path}: {name}") for name in ("beta_encoder", "decoder")
    )
    modules = networks.build(beta, decoder)
    return {
        name: _fill(module, _state(content, name, path), f"{path}: {name}")
        for name, module in modules.items()
    }


def load_fusion(path: str | Path) -> networks.FusionNet:
    """The fusion network of a fusion checkpoint (key ``fusion_net``); errors as `load_harmonization`."""
    return _fill(networks.FusionNet(), _state(load(path), "fusion_net", path), f"{path}: fusion_net")


def save(path: str | Path, modules: dict[str, nn.Module], epoch: int, timestr: str) -> None:
    """Write networks in the published layout: float16, no optimizer state, under a temporary name first.

    Parameters
    ----------
    path : str or Path
        Ends in ``.pt``.
    modules : dict of str to torch.nn.Module
        By their published names.
    epoch : int
        Number of the epoch, or of the step.
    timestr : str
        When it was trained.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"epoch": epoch, "timestr": timestr}
    for name, module in modules.items():
        content[name] = collections.OrderedDict(
            (key, tensor.cpu().half()) for key, tensor in module.state_dict().items()
        )
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(content, temporary)
    temporary.replace(path)
