"""Harmonization of whole volumes with HACA3: preprocessing, three orientations, anatomy codes, fusion.

Source: Zuo et al., Computerized Medical Imaging and Graphics 109:102285 (2023), and what the published
program (github.com/lianruizuo/haca3, commit 1041760) computes.

Deliberate deviations from the published program
------------------------------------------------
Each of its quirks, and what is done about it here:

- Gumbel noise of the anatomy code, unseeded: seeded here (`seed`, `anatomy`), since two runs on the same
  input would differ and that noise would hide the effect of the resolution. ``anatomy="argmax"`` uses none.
- The anatomy codes of the single sources are sampled, which advances the noise: not here; only the
  published intermediates need them.
- Theta, eta and attention of an all-zero slice are rounding errors that instance normalization amplifies.
  They are here too, but they are computed once, so that all such slices have the same.
- Without a fusion net the published command line fails before it gets to the median that was meant; here
  several orientations without one give the voxel-wise median.
- The output is masked by the first source's foreground: ``mask="first"``, the default; the union and the
  intersection of all sources' are offered. ``variant="haca3plus"`` (github.com/shays15/haca3-plus, commit
  4ec722b) has the union as its default.
- The output takes header, affine and data type from the last source, and orientation volumes re-read from
  such files are quantised before fusion if the type is an integer: here arrays go in and float32 arrays
  come out, on the grid of the sources, whose affine is therefore that of the output.
- Volumes of other sizes than 192 x 224 x 192 are written misplaced or crash: refused here.
- Fusion runs in float16 on a GPU and keeps gradients (twice the memory): float32 without gradients here.
- 95th percentile over all voxels, background included, and normalised again before fusion: kept, it is what
  the weights know.
- HACA3+ takes slices for contrasts when a batch has as many slices as there are contrasts: it does not
  permute its mask then. Here no axis is recognized by its length.
- Both programs process a quarter of the slices at a time; here each by a thread of its own on a CPU, where
  activations of more do not fit the caches, and as many together as fit on a GPU; and slices outside the
  mask are not computed: they are zero in any case.
- The published command line can skip the removal of the background (``--no-bg-removal``). It is on by
  default, and here: a source that shall keep its background is given as
  ``Encoding(volume=pad(normalise(image)[0]))``.
- Without a target image it takes theta, and has eta (0.3, 0.5) and norm 1000 as defaults: a `Target` names
  all three, since a default for the scale of an output is a guess.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers import study
from helpers.grid import AXIS, SHAPE
from helpers.haca3 import checkpoint, resolution, slicing
from helpers.haca3.fast.threads import side_by_side
from helpers.haca3.inputs import (
    Encoding,
    Target,
    acquisitions_of,
    digest_of,
    require_orientations,
    require_volume,
)
from helpers.haca3.networks import SLICE
from helpers.haca3.slice_networks import COMBINE, SliceNetworks, exactly


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
    slices : SliceNetworks
        What does the work, slice by slice.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        device: str = "cpu",
        variant: str = "haca3",
        precision: str = "float32",
        compiled: bool = True,
    ):
        self.slices = SliceNetworks(networks, device, variant, precision, compiled)
        self.networks, self.compiled = self.slices.networks, self.slices.compiled
        self.variant, self.device, self.precision = variant, self.slices.device, precision

    @exactly
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
        padded, norm = slicing.preprocess(require_volume(volume, "target"))
        with side_by_side(self.device) as run:
            keys = run(
                lambda k: self.slices.key(
                    self.slices.tensor([slicing.slice_of(padded, "coronal", k)]), self.slices.quick
                ),
                slicing.TARGET_SLICES,
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
        return Encoding(volume=slicing.preprocess(require_volume(volume, "source"))[0])

    @exactly
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
            for o in require_orientations(orientations, slice_step):
                batches = self.slices.batches(slicing.visited(o, slice_step))
                for some, codes in zip(batches, run(functools.partial(self.slices.codes, whole, o), batches)):
                    slices.update({(o, k): code for k, code in zip(some, codes)})
        return Encoding(slices, digest_of(whole))

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
        targets, orientations, anatomy, mask, seed, slice_step
            As in `harmonize`, the same for all.
        geometries : dict of str to dict, optional
            Name -> geometry, as in `harmonize`.
        details
            As in `harmonize`.

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
        orientations = require_orientations(orientations, slice_step)
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
            case: acquisitions_of(sources, (geometries or {}).get(case)) for case, sources in cases.items()
        }
        given = {id(image): (name, image) for sources in cases.values() for name, image in sources.items()}
        for name, image in given.values():
            if not isinstance(image, Encoding):
                require_volume(image, f"source {name}")
            elif image.volume is None:
                for stack in ((o, k) for o in orientations for k in slicing.visited(o, slice_step)):
                    if stack not in image.slices:
                        raise ValueError(
                            f"source {name} is encoded without {stack[0]} slice {stack[1]}: accepted are "
                            "encodings of it"
                        )
        for name, image in targets.items():
            if not isinstance(image, Target):
                require_volume(image, f"target {name}")
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
                images[name] = self.slices.fuse(unfused[name], target.norm)
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

    @exactly
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
            masks = {k: COMBINE[mask](self.slices.foregrounds(sources, orientation, k)) for k in ks}
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
                    known |= zip(unknown, self.slices.codes(source, orientation, unknown))
                if not visible:
                    continue
                images, attention, keys = results[case]
                shared = [[codes[id(source)][k] for k in visible] for source in sources.values()]
                how = (runs[case], draw, acquisitions[case])
                key, painted = self.slices.harmonize(
                    orientation, shared, targets, inside[case], *how, visible
                )
                for number, name in enumerate(sources):
                    keys[name][visible] = key[:, number]
                for name, (weights, harmonized) in painted.items():
                    attention[name][visible] = weights
                    images[name] |= {
                        k: slicing.trimmed(image, inside[case][k]) for k, image in zip(visible, harmonized)
                    }

        with side_by_side(self.device) as run:
            list(run(work, self.slices.batches(sorted(not_empty))))
        crop = slice(slicing.PAD[axis], slicing.PAD[axis] + SHAPE[axis])
        return {
            case: (
                images,
                {name: table[crop] for name, table in attention.items()},
                {name: table[crop] for name, table in keys.items()},
            )
            for case, (images, attention, keys) in results.items()
        }


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


def _runs(sources: dict[str, Encoding], targets: Mapping, anatomy: str) -> dict[str, tuple[int, ...]] | None:
    """What besides the seed the noise of each target depends on; None for no noise."""
    if anatomy == "argmax":
        return None
    if anatomy == "shared":
        return dict.fromkeys(targets, ())
    digest = hashlib.sha256()
    for name, source in sources.items():
        digest.update(f"{name} {digest_of(source)}".encode())
    words = np.frombuffer(digest.digest()[:16], np.uint32).tolist()
    return {name: (*words, study.CONTRASTS.index(name)) for name in targets}
