"""Harmonization of whole volumes with HACA3: preprocessing, three orientations, anatomy codes, fusion.

Source: Zuo et al., Computerized Medical Imaging and Graphics 109:102285 (2023), and what the published
program (github.com/lianruizuo/haca3, commit 1041760) computes.

Deliberate deviations from the published program
------------------------------------------------
Each of its quirks, and what is done about it here:

- Gumbel noise of the anatomy code, unseeded: seeded here (`seed`, `anatomy`), since two runs on the same
  input would differ
  and that noise would hide the effect of the resolution. ``anatomy="argmax"`` uses none.
- The anatomy codes of the single sources are sampled, which advances the noise: not here; only the published
  intermediates need them.
- Theta and eta of an all-zero slice are rounding noise that instance norm amplifies; so are they here, and so
  is their
  attention, but they are computed once, so that they are the same for every such slice.
- Without a fusion net the published command line fails before it gets to the median that was meant; here
  several orientations without one give the voxel-wise median.
- The output is masked by the first source's foreground: ``mask="first"``, the default; the union and the
  intersection of all
  sources' are offered. ``variant="haca3plus"`` (github.com/shays15/haca3-plus, commit 4ec722b) has the union
  as its default.
- The output takes header, affine and data type from the last source, and orientation volumes re-read from
  such files are
  quantised before fusion if the type is an integer: here arrays go in and float32 arrays come out, on the
  grid of the sources, whose affine is therefore that of the output.
- Volumes of other sizes than 192 x 224 x 192 are written misplaced or crash: refused here.
- Fusion runs in float16 on a GPU and keeps gradients (twice the memory): float32 without gradients here.
- 95th percentile over all voxels, background included, and normalised again before fusion: kept, it is what
  the weights know.
- HACA3+ does not permute its mask when a batch has as many slices as there are contrasts: slices are told
  from contrasts here.
- Both programs process a quarter of the slices at a time; here each by a thread of its own on a CPU, where
  activations of more
  do not fit the caches, and as many together as fit on a GPU; and slices outside the mask are not computed:
  they are zero in any case.
- The published command line can skip the removal of the background (``--no-bg-removal``). It is on by
  default, and here: a
  source that shall keep its background is given as ``Encoding(volume=pad(normalise(image)[0]))``.
- Without a target image it takes theta, and has eta (0.3, 0.5) and norm 1000 as defaults: a `Target` names
  all three, since a
  default for the scale of an output is a guess.
"""

import copy
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers import study, volumes
from helpers.grid import AXIS, SHAPE
from helpers.haca3 import checkpoint, resolution, slicing
from helpers.haca3.fast import fusion, memory, winograd
from helpers.haca3.fast.layers import most_probable, quicken
from helpers.haca3.fast.threads import side_by_side
from helpers.haca3.networks import SLICE, FusionNet, labels_to_beta

_FOREGROUND = {
    "haca3": 1e-6,
    "haca3plus": 1e-2,
}  # variant -> intensity above which a pixel is foreground of a source
TARGET_SLICES = range(100, 120)  #: coronal slices that describe a target
_FUSION_ORDER = ("axial", "coronal", "sagittal")  # channels of the fusion net
_COMBINE = {  # which sources' foregrounds, (n, 224, 224), the output has
    "first": lambda foregrounds: foregrounds[0],
    "union": np.logical_or.reduce,
    "intersection": np.logical_and.reduce,
}
_LARGE = ("beta_encoder", "eta_encoder", "decoder")  # networks in which the time goes
_SLICE_BYTES = 150 * 2**20  # memory of a slice on its way through the published networks, with some to spare


@dataclass(frozen=True)
class Target:
    """What a target image contributes: its contrast, its artifacts, its scale.

    Attributes
    ----------
    theta, eta : ndarray, shape (2,), float32
        Mean over the coronal slices 100 to 119.
    norm : float
        95th percentile of the image, in its own units: the scale of the output.

    Raises
    ------
    ValueError
        If theta or eta is not two finite numbers, or norm not a finite one above 0.
    """

    theta: np.ndarray
    eta: np.ndarray
    norm: float

    def __post_init__(self):
        for name, shape, accepted in (
            ("theta", (2,), "two finite numbers"),
            ("eta", (2,), "two finite numbers"),
            ("norm", (), "one finite number above 0"),
        ):
            given = getattr(self, name)
            try:
                with np.errstate(over="ignore"):  # What float32 cannot hold is infinite, and refused as such.
                    value = np.asarray(given, dtype=np.float32)
            except (TypeError, ValueError):
                value = np.float32(np.nan)
            if value.shape != shape or not np.isfinite(value).all() or (name == "norm" and value <= 0):
                raise ValueError(
                    f"{name} of the target is {str(given).splitlines()[0]}: accepted "
                    f"{'is' if name == 'norm' else 'are'} {accepted}"
                )
            object.__setattr__(self, name, float(given) if name == "norm" else value)


@dataclass(frozen=True)
class Encoding:
    """A source as `Harmonizer.encode` leaves it: the slices that it was asked for, ready for any target.

    Attributes
    ----------
    slices : dict of (str, int) to tuple
        (orientation, slice of the padded stack) -> foreground (224, 224) bool, logits (5, 224, 224), key (4,)
        = theta and eta. Logits and key are None where the slice is all zero.
    digest : str
        SHA-256 of the preprocessed volume: which source it is.
    volume : ndarray, shape (224, 224, 224), float32, optional
        Preprocessed and padded. With it, a slice that is not in `slices` is encoded when it is needed.
    """

    slices: dict = field(default_factory=dict)
    digest: str = ""
    volume: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The slices as arrays, as one stores them: `from_arrays` is the inverse."""
        full = [(logits, key) for _, logits, key in self.slices.values() if logits is not None]
        return {
            "digest": np.array(self.digest),
            "orientation": np.array([orientation for orientation, _ in self.slices], dtype="U8"),
            "slice": np.array([k for _, k in self.slices], dtype=np.int64),
            "foreground": np.array([foreground for foreground, _, _ in self.slices.values()], dtype=bool),
            "encoded": np.array([logits is not None for _, logits, _ in self.slices.values()], dtype=bool),
            "logits": np.array([logits.cpu().numpy() for logits, _ in full], dtype=np.float32),
            "key": np.array([key.cpu().numpy() for _, key in full], dtype=np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Encoding":
        """An encoding from what `arrays` gave."""
        full = zip(torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["key"]))
        slices = {}
        for number, (orientation, k) in enumerate(zip(arrays["orientation"], arrays["slice"])):
            code = next(full) if arrays["encoded"][number] else (None, None)
            slices[str(orientation), int(k)] = (arrays["foreground"][number], *code)
        return cls(slices, str(arrays["digest"]))


@dataclass(frozen=True)
class Harmonized:
    """The result of `Harmonizer.harmonize`; slices that were not computed are NaN.

    Attributes
    ----------
    images : dict of str to ndarray, shape (192, 224, 192), float32
        Target contrast -> image in the units of its target; 0 outside the mask.
    sources : tuple of str
        Contrasts in the order of the last axis of `attention`.
    targets : dict of str to Target
        Theta, eta and norm of each target.
    unfused : dict of str to dict of str to ndarray, shape (192, 224, 192)
        Target contrast -> orientation -> volume before fusion.
    attention : dict of str to dict of str to ndarray, shape (slices, sources)
        Target contrast -> orientation -> weight of each source; a slice's number is its index on the output's
        axis.
    theta, eta : dict of str to dict of str to ndarray, shape (slices, 2)
        Source contrast -> orientation -> what describes that slice.

    Notes
    -----
    All but the images are None unless ``details=True``.
    """

    images: dict
    sources: tuple | None = None
    targets: dict | None = None
    unfused: dict | None = None
    attention: dict | None = None
    theta: dict | None = None
    eta: dict | None = None


# ---------------------------------------------------------------- harmonization


def _exact(method):
    """Without gradients; on a GPU in float32 proper (cuDNN would take TF32), and twice the same."""

    @functools.wraps(method)
    def run(*args, **kwargs):
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            return method(*args, **kwargs)

    return run


class Harmonizer:
    """HACA3, ready to use; made by `load`.

    Attributes
    ----------
    networks : dict of str to torch.nn.Module
        By their published names: ``beta_encoder``, ``theta_encoder`` (returns mean and log-variance),
        ``eta_encoder``, ``decoder``, ``attention_module``, ``patchifier``, and ``fusion_net`` if there is
        one.
    variant, device, precision : str
    compiled : bool
        Whether the networks do run as a C++ compiler has built them (`helpers.haca3.fast`).
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        device: str = "cpu",
        variant: str = "haca3",
        precision: str = "float32",
        compiled: bool = True,
    ):
        memory.keep_freed_memory()
        self.variant, self.device = study.require("variant", variant, study.VARIANTS), _device(device)
        self.precision = study.require("precision", precision, study.PRECISIONS)
        self.networks = {name: network.to(self.device).eval() for name, network in networks.items()}
        self.compiled = (
            compiled and self.device == "cpu" and precision == "float32" and winograd.library() is not None
        )
        quick = winograd.accelerated if self.compiled else lambda network: quicken(copy.deepcopy(network))
        self._run = self.networks | {name: quick(self.networks[name]) for name in _LARGE if name in networks}
        if isinstance(networks.get("fusion_net"), FusionNet):
            program = fusion.library() if self.compiled else None
            self._run["fusion_net"] = fusion.BoxedFusion(self.networks["fusion_net"], program)
        self._empty = None  # code of an all-zero slice

    @_exact
    def target(self, volume: np.ndarray) -> Target:
        """Describe a target image.

        Parameters
        ----------
        volume : ndarray, shape (192, 224, 192)
            Any units; the harmonized image has the same.

        Raises
        ------
        ValueError
            If the volume is on another grid, not finite, or all zero.
        """
        padded, norm = slicing.preprocess(_checked(volume, "target"))
        with side_by_side(self.device) as run:
            keys = run(
                lambda k: self._key(self._tensor([slicing.slice_of(padded, "coronal", k)]), self._run),
                TARGET_SLICES,
            )
            keys = torch.cat(list(keys))  # (20, 4)
        theta, eta = keys.mean(dim=0).cpu().numpy().reshape(2, 2)
        return Target(theta, eta, norm)

    def prepare(self, volume: np.ndarray) -> Encoding:
        """Preprocess a source, of which `harmonize` encodes slices when it needs them.

        Parameters
        ----------
        volume : ndarray, shape (192, 224, 192)

        Raises
        ------
        ValueError
            If the volume is on another grid, not finite, or all zero.
        """
        return Encoding(volume=slicing.preprocess(_checked(volume, "source"))[0])

    @_exact
    def encode(
        self, volume: np.ndarray, orientations: Sequence[str] = ("axial",), slice_step: int = 1
    ) -> Encoding:
        """Encode a source once for several calls of `harmonize`, which accepts it in place of the array.

        Costs 1 MB of memory a slice, so 0.5 GB for three orientations of a brain. Only these orientations and
        slices can be harmonized with it.

        Parameters
        ----------
        volume : ndarray, shape (192, 224, 192)
        orientations : sequence of str
        slice_step : int
            As in `harmonize`.
        """
        whole = self.prepare(volume)
        slices = {}
        with side_by_side(self.device) as run:
            for o in _orientations(orientations, slice_step):
                batches = self._batches(slicing.visited(o, slice_step))
                for some, codes in zip(batches, run(functools.partial(self._codes, whole, o), batches)):
                    slices.update({(o, k): code for k, code in zip(some, codes)})
        return Encoding(slices, _digest(whole))

    def harmonize(
        self,
        sources: Mapping[str, np.ndarray | Encoding],
        targets: Mapping[str, np.ndarray | Target],
        *,
        orientations: Sequence[str] = ("axial",),
        anatomy: str = "shared",
        mask: str | None = None,
        seed: int = 0,
        slice_step: int = 1,
        geometry: Mapping[str, resolution.Acquisition | None] | None = None,
        details: bool = False,
    ) -> Harmonized:
        """Give the anatomy of the sources the contrast of each target.

        Parameters
        ----------
        sources : dict of str to ndarray, shape (192, 224, 192), or Encoding
            Contrast -> image, one to three of them, in any units. The first is the one of ``mask="first"``. A
            missing contrast is made up from the others.
        targets : dict of str to ndarray, shape (192, 224, 192), or Target
            Contrast -> image that has the wanted contrast, of anyone.
        orientations : sequence of str
            Planes of reconstruction. One: its volume. Several: fused, by the fusion net (which wants all
            three) or, without one, by the voxel-wise median of the normalised volumes.
        anatomy : {"shared", "independent", "argmax"}
            Anatomy code: sampled with the noise of `seed`, sampled with noise that also depends on the
            sources and the target, or the most probable label.
        mask : {"first", "union", "intersection"}, optional
            Which sources' foreground the output has; by default that of the published variant.
        seed : int
            Of the noise.
        slice_step : int
            Preview: harmonize only the slices ``slice_step // 2``, ``slice_step // 2 + slice_step``, ... of
            one orientation (numbers on the output's axis). The others are NaN.
        geometry : dict of str to Acquisition or None, optional
            Contrast of each source -> how its slices were acquired, None for a 3D image: what one source
            lacks by its geometry, the others fill in (`helpers.haca3.resolution`). Without it, and where all
            are alike, the attention decides alone.
        details : bool
            Keep what was found on the way: volumes before fusion, attention, theta and eta.

        Returns
        -------
        Harmonized

        Raises
        ------
        ValueError
            If an argument is not one of those, or an image is on another grid, not finite, or all zero.
        """
        options = {"anatomy": anatomy, "mask": mask, "seed": seed, "slice_step": slice_step}
        options |= {"geometries": {"": geometry}, "details": details}
        results = self.harmonize_all({"": sources}, targets, orientations=orientations, **options)
        return dict(results)[""]

    def harmonize_all(
        self,
        cases: Mapping[str, Mapping[str, np.ndarray | Encoding]],
        targets: Mapping[str, np.ndarray | Target],
        *,
        orientations: Sequence[str] = ("axial",),
        anatomy: str = "shared",
        mask: str | None = None,
        seed: int = 0,
        slice_step: int = 1,
        geometries: Mapping[str, Mapping[str, resolution.Acquisition | None] | None] | None = None,
        details: bool = False,
    ) -> Iterator[tuple[str, Harmonized]]:
        """Harmonize several sets of sources, each as `harmonize` does, with the same bytes.

        A source that several of them have (the same object) is encoded once, slice by slice: no more than the
        encodings of a slice are in memory.

        Parameters
        ----------
        cases : dict of str to dict
            Any name -> sources, as in `harmonize`.
        geometries : dict of str to dict, optional
            Name -> geometry, as in `harmonize`.
        targets, orientations, anatomy, mask, seed, slice_step, details
            As in `harmonize`, the same for all.

        Returns
        -------
        iterator of (str, Harmonized)
            In the order of the cases; a volume is put together and fused when it is asked for.

        Raises
        ------
        ValueError
            As `harmonize`, at once.
        """
        study.require("anatomy", anatomy, study.ANATOMIES)
        mask = study.require("mask", mask or study.VARIANTS[self.variant], study.MASKS)
        if seed < 0:
            raise ValueError(f"seed is {seed}: accepted is an integer of 0 or more")
        orientations = _orientations(orientations, slice_step)
        if "fusion_net" in self.networks and len(orientations) == 2:
            raise ValueError(
                f"orientations are {', '.join(orientations)}: accepted for the fusion net are one or all "
                "three"
            )
        for sources in cases.values():
            if not sources or not targets:
                raise ValueError(
                    f"{'sources' if not sources else 'targets'} are empty: accepted is at least one contrast"
                )
            for name in (*sources, *targets):
                study.require("contrast", name, study.CONTRASTS)
        # All arguments are checked before the first slice is computed: a late error would cost minutes.
        acquisitions = {
            case: _acquisitions(sources, (geometries or {}).get(case)) for case, sources in cases.items()
        }
        given = {id(image): (name, image) for sources in cases.values() for name, image in sources.items()}
        for name, image in given.values():
            if not isinstance(image, Encoding):
                _checked(image, f"source {name}")
            elif image.volume is None:
                for stack in ((o, k) for o in orientations for k in slicing.visited(o, slice_step)):
                    if stack not in image.slices:
                        raise ValueError(
                            f"source {name} is encoded without {stack[0]} slice {stack[1]}: accepted are "
                            "encodings of it"
                        )
        for name, image in targets.items():
            if not isinstance(image, Target):
                _checked(image, f"target {name}")
        described = {name: t if isinstance(t, Target) else self.target(t) for name, t in targets.items()}
        prepared = {
            key: image if isinstance(image, Encoding) else self.prepare(image)
            for key, (_, image) in given.items()
        }
        encodings = {
            case: {name: prepared[id(image)] for name, image in sources.items()}
            for case, sources in cases.items()
        }
        settings = (anatomy, mask, seed, slice_step)
        return self._all(encodings, described, orientations, settings, acquisitions, details)

    def _all(self, cases, targets, orientations, settings, acquisitions, details):
        """What `harmonize_all` returns, of arguments that were checked."""
        anatomy, mask, seed, slice_step = settings
        runs = {case: _runs(sources, targets, anatomy) for case, sources in cases.items()}
        elsewhere = np.nan if slice_step > 1 else 0
        ks = {o: slicing.visited(o, slice_step) for o in orientations}
        parts = {o: self._reconstruct(o, cases, targets, mask, runs, seed, ks[o], acquisitions) for o in ks}
        contrasts = {case: tuple(sources) for case, sources in cases.items()}
        del cases  # what is fused needs no sources
        for case, names in contrasts.items():
            stacks, attention, keys = {}, {}, {}
            for o, part in parts.items():
                stacks[o], attention[o], keys[o] = part.pop(case)
            unfused, images = {name: {} for name in targets}, {}
            for name, target in targets.items():
                for o in orientations:
                    unfused[name][o] = slicing.volume_of(stacks[o].pop(name), o, ks[o], elsewhere)
                images[name] = self._fuse(unfused[name], target.norm)
                if not details:
                    del unfused[name]
            if not details:
                yield case, Harmonized(images)
                continue
            yield (
                case,
                Harmonized(
                    images,
                    sources=names,
                    targets=targets,
                    unfused=unfused,
                    attention={name: {o: attention[o][name] for o in orientations} for name in targets},
                    theta={name: {o: keys[o][name][:, :2] for o in orientations} for name in names},
                    eta={name: {o: keys[o][name][:, 2:] for o in orientations} for name in names},
                ),
            )

    @_exact
    def harmonize_slice(
        self,
        sources: Mapping[str, np.ndarray],
        targets: Mapping[str, Target],
        orientation: str,
        index: int,
        *,
        seed: int = 0,
    ) -> dict[str, np.ndarray]:
        """Harmonize one slice, as `harmonize` does with it in one orientation: for looking at it while its
        sources change.

        Parameters
        ----------
        sources : dict of str to ndarray, 2D
            Contrast -> that slice of the volume after `normalise`, zero outside of its `foreground`.
        targets : dict of str to Target
        orientation : str
            Plane of the slice.
        index : int
            Of the slice on the volume's axis, by which its noise is drawn.
        seed : int
            Of the noise, which sources share.

        Returns
        -------
        dict of str to ndarray, 2D, float32
            Target contrast -> harmonized slice, in the units of the target, with the mask of the published
            variant.

        Raises
        ------
        ValueError
            If a source has another shape than that slice of the grid.
        """
        planes = {name: {orientation: plane} for name, plane in sources.items()}
        return {
            name: images[orientation]
            for name, images in self.harmonize_planes(
                planes, targets, {orientation: index}, seed=seed
            ).items()
        }

    @_exact
    def harmonize_planes(
        self,
        sources: Mapping[str, Mapping[str, np.ndarray]],
        targets: Mapping[str, Target],
        indices: Mapping[str, int],
        *,
        seed: int = 0,
        geometry: Mapping[str, resolution.Acquisition | None] | None = None,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Harmonize one slice of each of several planes, as `harmonize_slice` does with one, side by side.

        Parameters
        ----------
        sources : dict of str to dict of str to ndarray, 2D
            Contrast -> plane -> slice.
        targets : dict of str to Target
        indices : dict of str to int
            Plane -> index of the slice on the volume's axis.
        seed : int
        geometry : dict of str to Acquisition or None, optional
            As in `harmonize`.

        Returns
        -------
        dict of str to dict of str to ndarray, 2D, float32
            Target contrast -> plane -> harmonized slice.

        Raises
        ------
        ValueError
            If a source has another shape than that slice of the grid, or the geometry does not name each
            source.
        """
        acquisitions, images = _acquisitions(sources, geometry), {}
        for name, planes in sources.items():
            for orientation, plane in planes.items():
                axis = AXIS[study.require("orientation", orientation, study.ORIENTATIONS)]
                sides = [n for other, n in enumerate(SHAPE) if other != axis]
                if list(np.shape(plane)) != sides:
                    raise ValueError(
                        f"source {name} has shape {np.shape(plane)}: accepted is a slice of {sides[0]} x "
                        f"{sides[1]} pixels"
                    )
                widths = [(SLICE // 2 - n // 2, SLICE - n - (SLICE // 2 - n // 2)) for n in sides]
                images[name, orientation] = slicing.seen(
                    np.pad(np.asarray(plane, np.float32), widths), orientation
                )
        numbers = {
            orientation: index + slicing.PAD[AXIS[orientation]] for orientation, index in indices.items()
        }
        inside = {
            orientation: _COMBINE[study.VARIANTS[self.variant]](
                [self._foreground(images[name, orientation]) for name in sources]
            )
            for orientation in indices
        }
        wanted = [(orientation, name) for orientation in indices for name in targets]

        def encode(image):
            return self._encode([image], self._run)[0] if image.any() else (None, None)

        def decode(orientation, name):
            given, target = inside[orientation], {name: targets[name]}
            if not given.any():
                return np.zeros_like(given, np.float32)
            k = numbers[orientation]
            shared = [self._codes(source, orientation, [k]) for source in encodings.values()]
            draw = functools.partial(slicing.gumbel_noise, seed, orientation)
            how = ({name: ()}, draw, acquisitions)
            _, images = self._through(orientation, shared, target, {k: given}, *how, [k])
            return images[name][1][0]

        with side_by_side(self.device) as run:
            codes = dict(zip(images, run(encode, images.values())))
            encodings = {
                name: Encoding(
                    {(o, numbers[o]): (self._foreground(images[name, o]), *codes[name, o]) for o in indices}
                )
                for name in sources
            }
            results = {name: {} for name in targets}
            for (orientation, name), image in zip(wanted, run(decode, *zip(*wanted))) if wanted else ():
                results[name][orientation] = slicing.lying(image, orientation)
        return results

    def _batches(self, ks: Sequence[int]) -> list[Sequence[int]]:
        """Slices as they go through the networks: one at a time on a CPU, as many as memory allows on a
        GPU."""
        size = 1
        if self.device.startswith("cuda"):
            free, _ = torch.cuda.mem_get_info(torch.device(self.device))
            size = max(1, min(32, int(0.5 * free / _SLICE_BYTES)))
        elif self.device == "mps":
            size = 8
        return [ks[i : i + size] for i in range(0, len(ks), size)]

    def _tensor(self, images: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(images))[:, None].to(self.device)  # (B, 1, 224, 224)

    def _exactly(self):
        """The context of the large networks: float32, or bfloat16 where asked for."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.precision == "bfloat16")

    @staticmethod
    def _key(images: Tensor, networks: Mapping[str, nn.Module]) -> Tensor:
        """Theta and eta of slices (B, 1, 224, 224) -> (B, 4)."""
        return torch.cat(
            [networks["theta_encoder"](images)[0].flatten(1), networks["eta_encoder"](images).flatten(1)],
            dim=1,
        )

    def _encode(
        self, images: Sequence[np.ndarray], networks: Mapping[str, nn.Module]
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits (5, 224, 224) and key (4,) of each slice (224, 224)."""
        images = self._tensor(images)
        with self._exactly():
            logits = networks["beta_encoder"](images)
        return list(zip(logits.float(), self._key(images, networks)))

    def _codes(
        self, source: Encoding, orientation: str, ks: Sequence[int]
    ) -> list[tuple[np.ndarray, Tensor | None, Tensor | None]]:
        """Foreground, logits and key of some slices, as `Encoding.slices` holds them."""
        stored = {k: source.slices[orientation, k] for k in ks if (orientation, k) in source.slices}
        # An encoding that was stored comes back in the memory of the CPU.
        codes = {
            k: (pixels, *(part if part is None else part.to(self.device) for part in code))
            for k, (pixels, *code) in stored.items()
        }
        images = {k: slicing.slice_of(source.volume, orientation, k) for k in ks if k not in codes}
        full = [k for k, image in images.items() if image.any()]
        encoded = dict(zip(full, self._encode([images[k] for k in full], self._run))) if full else {}
        codes |= {k: (self._foreground(image), *encoded.get(k, (None, None))) for k, image in images.items()}
        return [codes[k] for k in ks]

    def _foreground(self, image: np.ndarray) -> np.ndarray:
        return image > _FOREGROUND[self.variant]

    def _foregrounds(self, sources: dict[str, Encoding], orientation: str, k: int) -> np.ndarray:
        """Where each source is not background: shape (n, 224, 224), bool."""
        stack = (orientation, k)
        return np.stack(
            [
                s.slices[stack][0]
                if stack in s.slices
                else self._foreground(slicing.slice_of(s.volume, *stack))
                for s in sources.values()
            ]
        )

    @_exact
    def _reconstruct(self, orientation, cases, targets, mask, runs, seed, ks, acquisitions):
        """Harmonize the slices `ks` of one orientation.

        Returns
        -------
        dict of str to tuple
            Case -> by target the slices (`slicing.volume_of`) and the attention, by source the keys.
        """
        axis = AXIS[orientation]
        inside, not_empty, results = {}, {}, {}
        for case, sources in cases.items():
            masks = {k: _COMBINE[mask](self._foregrounds(sources, orientation, k)) for k in ks}
            inside[case] = {k: part for k, part in masks.items() if part.any()}
            not_empty |= dict.fromkeys(inside[case])
            results[case] = (
                {name: {} for name in targets},
                {name: np.full((SLICE, len(sources)), np.nan, np.float32) for name in targets},
                {name: np.full((SLICE, 4), np.nan, np.float32) for name in sources},
            )

        def work(some):
            codes = {}  # of each source once, whoever has it, and so is the noise
            draw = functools.cache(functools.partial(slicing.gumbel_noise, seed, orientation))
            for case, sources in cases.items():
                visible = [k for k in some if k in inside[case]]
                for source in sources.values():
                    known = codes.setdefault(id(source), {})
                    unknown = [k for k in visible if k not in known]
                    known |= zip(unknown, self._codes(source, orientation, unknown))
                if not visible:
                    continue
                images, attention, keys = results[case]
                shared = [[codes[id(source)][k] for k in visible] for source in sources.values()]
                how = (runs[case], draw, acquisitions[case])
                key, painted = self._through(orientation, shared, targets, inside[case], *how, visible)
                for number, name in enumerate(sources):
                    keys[name][visible] = key[:, number]
                for name, (weights, harmonized) in painted.items():
                    attention[name][visible] = weights
                    images[name] |= {
                        k: slicing.trimmed(image, inside[case][k]) for k, image in zip(visible, harmonized)
                    }

        with side_by_side(self.device) as run:
            list(run(work, self._batches(sorted(not_empty))))
        crop = slice(slicing.PAD[axis], slicing.PAD[axis] + SHAPE[axis])
        return {
            case: (
                images,
                {name: table[crop] for name, table in attention.items()},
                {name: table[crop] for name, table in keys.items()},
            )
            for case, (images, attention, keys) in results.items()
        }

    def _through(self, orientation, codes, targets, inside, runs, draw, acquisitions, some):
        """The slices `some` of one orientation through all networks, from the codes of each source.

        Returns
        -------
        key : ndarray, shape (B, n, 4)
            Theta and eta of the sources.
        results : dict of str to (ndarray of shape (B, n), list of B ndarrays of shape (224, 224))
            Target contrast -> attention, and images in the units of the target.
        """
        if self._empty is None and any(logits is None for source in codes for _, logits, _ in source):
            # What an instance norm makes of nothing is rounding: the layers as published have the published
            # one.
            (self._empty,) = self._encode([np.zeros((SLICE, SLICE), np.float32)], self.networks)
        filled = [[(code[1:] if code[1] is not None else self._empty) for code in source] for source in codes]
        logits = [torch.stack([logits for logits, _ in source]) for source in filled]  # n of (B, 5, 224, 224)
        key = torch.stack([torch.stack([key for _, key in source]) for source in filled], dim=1)  # (B, n, 4)
        noise = {
            run: torch.stack([draw(k, run) for k in some]).to(self.device)
            for run in set((runs or {}).values())
        }
        results = {}
        for name, target in targets.items():
            query = (
                torch.from_numpy(np.concatenate([target.theta, target.eta]))
                .to(self.device)
                .expand(len(some), 4)
            )
            weights = self.networks["attention_module"].weights(query, key)  # (B, n)
            attention = weights.cpu().numpy()
            weights = weights[:, :, None, None]  # (B, n, 1, 1)
            if self.variant == "haca3plus":
                masks = [np.stack([mask for mask, _, _ in source]) for source in codes]  # n of (B, 224, 224)
                known = torch.from_numpy(np.stack(masks, axis=1)).to(self.device)
                weights = attention_map(weights * known)  # (B, n, 224, 224)
            if acquisitions:
                fused = self._mixed(logits, weights, attention, acquisitions, orientation, some)
            else:
                fused = sum(
                    weights[:, number, None] * part for number, part in enumerate(logits)
                )  # (B, 5, 224, 224)
            if runs is not None:
                fused = fused + noise[runs[name]]
            beta = labels_to_beta(most_probable(fused))[:, None]  # (B, 1, 224, 224)
            contrast = query[:, :2, None, None].expand(-1, 2, SLICE, SLICE)
            with self._exactly():
                images = self._run["decoder"](torch.cat([beta, contrast], dim=1))[:, 0].float().cpu().numpy()
            results[name] = (
                attention,
                [image * inside[k] * np.float32(target.norm) for k, image in zip(some, images)],
            )
        return key.cpu().numpy(), results

    def _mixed(self, logits, weights, attention, acquisitions, orientation, ks):
        """Logits (B, 5, 224, 224) of sources whose weights depend on what each of them carries of a
        frequency."""
        axis, mixed = AXIS[orientation], []
        for number, k in enumerate(ks):
            relative = resolution.relative_weights(
                acquisitions, orientation, k - slicing.PAD[axis], SHAPE[axis], attention[number]
            )
            some = torch.stack([source[number] for source in logits])  # (n, 5, 224, 224)
            mixed.append(
                resolution.mix(some, weights[number].squeeze(), torch.from_numpy(relative).to(self.device))
            )
        return torch.stack(mixed)

    @_exact
    def _fuse(self, unfused: dict[str, np.ndarray], norm: float) -> np.ndarray:
        """One volume of one to three orientations."""
        if len(unfused) == 1:
            return next(iter(unfused.values()))
        if "fusion_net" not in self.networks:
            return np.median([slicing.normalise(volume)[0] for volume in unfused.values()], axis=0).astype(
                np.float32
            ) * np.float32(norm)
        x = torch.from_numpy(fusion_input(unfused))[None].to(self.device)
        y = self._run["fusion_net"](x)[0, 0]
        return np.ascontiguousarray(y.cpu().numpy().transpose(2, 1, 0)[slicing.CROP]) * np.float32(norm)


def _acquisitions(sources, geometry):
    """How the sources were sliced, in their order; None where that changes nothing."""
    if geometry is not None:
        resolution.check_geometry(tuple(sources), geometry)
    return [geometry[name] for name in sources] if geometry and len(set(geometry.values())) > 1 else None


def load(
    harmonization: str | Path,
    fusion: str | Path | None = None,
    *,
    device: str = "auto",
    variant: str = "haca3",
    precision: str = "float32",
    compiled: bool = True,
) -> Harmonizer:
    """Load HACA3 from checkpoints in the published layout, of any width.

    Parameters
    ----------
    harmonization : str or Path
        ``harmonization_public.pt``, or ours.
    fusion : str or Path, optional
        ``fusion.pt``. Without it several orientations are fused by their median.
    device : str
        ``auto`` takes CUDA or MPS where there is one; else as torch names it.
    variant : {"haca3", "haca3plus"}
        HACA3+ has the same networks; its attention weighs each pixel by the sources that show it, and its
        mask is their union.
    precision : {"float32", "bfloat16"}
        bfloat16 runs the anatomy encoder and the decoder in half of the bits. With the shipped weights that
        moves the image by 32 to 39 dB from the one of float32, and it pays only where the hardware has it.
    compiled : bool
        On a CPU in float32, let a C++ compiler build what multiplies less in the networks
        (`helpers.haca3.fast.winograd`) and what fuses (`helpers.haca3.fast.fusion`): some seconds, once.
        Same result to rounding. Without a compiler (which one line says) or elsewhere the networks run as
        they are.

    Raises
    ------
    FileNotFoundError, ValueError
        If a checkpoint is missing, cannot be read safely, or does not fit, or an argument is none of those.
    """
    networks = checkpoint.load_harmonization(harmonization)
    if fusion is not None:
        networks["fusion_net"] = checkpoint.load_fusion(fusion)
    return Harmonizer(networks, device, variant, precision, compiled)


def fusion_input(unfused: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the fusion net is given: three orientations of one image, normalised, padded, in the order (z, y,
    x).

    Parameters
    ----------
    unfused : dict of str to ndarray, shape (192, 224, 192)
        Orientation -> volume.

    Returns
    -------
    ndarray, shape (3, 224, 224, 224), float32
        Axial, coronal, sagittal.
    """
    return np.stack(
        [
            slicing.pad(slicing.normalise(unfused[orientation])[0]).transpose(2, 1, 0)
            for orientation in _FUSION_ORDER
        ]
    )


def attention_map(attention: Tensor) -> Tensor:
    """Attention of HACA3+: one weight for each pixel and source, shared among the sources that show the
    pixel, and smoothed.

    Parameters
    ----------
    attention : Tensor, shape (B, n, H, W)
        Attention of the slice where the source is not background, else 0.

    Returns
    -------
    Tensor, shape (B, n, H, W)
        Sums to one over the sources (to 1e-6). Where no source shows the pixel they weigh alike.
    """
    total = attention.sum(dim=1, keepdim=True)
    attention = torch.where(
        total < 1e-6, torch.full_like(attention, 1 / attention.shape[1]), attention / (total + 1e-6)
    )
    # One pass over the four neighbours; five were meant, but the published loop ends after the first.
    padded = nn.functional.pad(attention, (1, 1, 1, 1), mode="replicate")
    smooth = attention
    for neighbour in (
        padded[..., :-2, 1:-1],
        padded[..., 2:, 1:-1],
        padded[..., 1:-1, :-2],
        padded[..., 1:-1, 2:],
    ):
        smooth = torch.where((smooth - neighbour).abs() > 0.2, (smooth + neighbour) / 2, smooth)
    return smooth / (smooth.sum(dim=1, keepdim=True) + 1e-6)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device is {device!r}, which torch cannot use here ({str(error).splitlines()[0]}): accepted "
            "are auto, cpu, cuda, mps"
        ) from None
    return device


def _checked(volume, what: str) -> np.ndarray:
    """The volume, if it can be harmonized."""
    volume = volumes.as_volume(volume, what)
    if volume.shape != SHAPE:
        raise ValueError(f"{what} has shape {volume.shape}: accepted is the MNI grid {SHAPE}")
    if not volume.any():
        raise ValueError(f"{what} is zero everywhere: accepted is an image")
    filled = np.count_nonzero(volume > 0) / volume.size
    if filled <= 0.05:  # Its 95th percentile, by which it is scaled, would be 0.
        raise ValueError(
            f"{what} shows something in {filled:.1%} of its voxels: accepted is an image of more than 5%"
        )
    return volume


def _orientations(orientations: Sequence[str], slice_step: int) -> tuple[str, ...]:
    """The orientations, if they and the step can go together."""
    if isinstance(orientations, str):
        orientations = (orientations,)
    orientations = tuple(study.require("orientation", o, study.ORIENTATIONS) for o in orientations)
    if not orientations or len(set(orientations)) < len(orientations):
        raise ValueError(f"orientations are {orientations}: accepted are one or more, each once")
    if slice_step != int(slice_step) or slice_step < 1:
        raise ValueError(f"slice_step is {slice_step}: accepted is an integer of 1 or more")
    if slice_step > 1 and len(orientations) > 1:
        raise ValueError(
            f"slice_step is {slice_step} with {len(orientations)} orientations: a preview has one orientation"
        )
    return orientations


def _digest(source: Encoding) -> str:
    """Which source it is."""
    return source.digest or hashlib.sha256(source.volume.tobytes()).hexdigest()


def _runs(sources: dict[str, Encoding], targets: Mapping, anatomy: str) -> dict[str, tuple[int, ...]] | None:
    """What besides the seed the noise of each target depends on; None for no noise."""
    if anatomy == "argmax":
        return None
    if anatomy == "shared":
        return dict.fromkeys(targets, ())
    digest = hashlib.sha256()
    for name, source in sources.items():
        digest.update(f"{name} {_digest(source)}".encode())
    words = np.frombuffer(digest.digest()[:16], np.uint32).tolist()
    return {name: (*words, study.CONTRASTS.index(name)) for name in targets}
