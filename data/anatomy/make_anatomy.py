"""Make the embedded brain from the example subject S1 of pycortex 1.4.0.

Nobody needs to run this: its result lies beside it. It needs `pip install nilearn` besides this repository,
about ten minutes, and the source package of pycortex::

    pip download --no-deps --no-binary :all: pycortex==1.4.0
    python data/anatomy/make_anatomy.py pycortex-1.4.0.tar.gz data/anatomy

What happens:

1. S1 moves to MNI by a rigid transform (`TO_SOURCE`).
2. The cortex: S1's white and pial surfaces are moved to MNI and turned into volume fractions there, so that
   the cortical
   fractions are never resampled. The T1w is resampled once (cubic spline) and denoised (non-local means).
3. Everything that the surfaces do not reach, by intensity: lateral ventricles and deep grey matter inside the
   white
   surface, cerebellum and brain stem outside the pial one. The template, warped to S1 (SyN), says roughly
   where these are.
4. The brain mask: the tissue, closed over sulci and fissures, plus 1 mm. What is no tissue in it is fluid.

SyN samples at random on several threads: a second run agrees closely, not to the byte.
"""

import argparse
import io
import tarfile
import tempfile
from pathlib import Path

import ants
import nibabel as nib
import nilearn
import numpy as np
from masks import ball, brain_mask, grow, largest
from scipy import ndimage

from helpers import volumes
from helpers.grid import AFFINE, SHAPE
from helpers.layout import SPACE

# World to world in mm, template position to S1 position: ANTs, rigid, mutual information of the T1w within
# the pial surface and the template. Written down, since that registration samples at random and another run
# ends up to 3 degrees elsewhere.
TO_SOURCE = np.array(
    [
        [0.9991196, -0.0362932, -0.0210444, 0.0925557],
        [0.0330746, 0.990006, -0.1370924, 40.84875],
        [0.0258096, 0.1362756, 0.9903347, -3.577122],
        [0, 0, 0, 1],
    ]
)
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS, which is what ANTs counts in
SOURCE = (
    "Subject S1 of the example filestore of pycortex 1.4.0 (PyPI source package): "
    "anatomicals/raw.nii.gz, surfaces/{wm,pia}_{l,r}h.gii"
)
MEANING = {
    "CGM": "cortical grey matter, between white and pial surface",
    "WM": "white matter of cerebrum, cerebellum and brain stem",
    "SGM": "subcortical grey matter, with grey voxels of the brain stem",
    "CBM": "cerebellar cortex",
    "VCSF": "fluid of the lateral ventricles",
    "CSF": "all other cerebrospinal fluid: sulci, cisterns, third and fourth ventricle, rim",
}


def to_ants(volume, affine):
    lps = FLIP @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.asarray(volume, np.float32),
        origin=lps[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=lps[:3, :3] / spacing,
    )


def read_source(path):
    """T1w, its affine, and the four surfaces as (vertices in mm, triangles)."""
    with tarfile.open(path) as archive, tempfile.TemporaryDirectory() as folder:

        def fetch(name):
            member = f"pycortex-1.4.0/filestore/db/S1/{name}"
            return archive.extractfile(member).read()

        image = Path(folder) / "raw.nii.gz"
        image.write_bytes(fetch("anatomicals/raw.nii.gz"))
        image = nib.load(image)
        t1w = np.asarray(image.dataobj).astype(np.float32)
        surfaces = {}
        for kind in ("wm", "pia"):
            for side in "lr":
                gifti = nib.GiftiImage.from_bytes(io.BytesIO(fetch(f"surfaces/{kind}_{side}h.gii")).read())
                surfaces[kind, side] = tuple(array.data for array in gifti.darrays)
        licence = archive.extractfile("pycortex-1.4.0/LICENSE").read().decode()
    return t1w, image.affine, surfaces, licence


def read_template():
    """The packaged template (T1w, grey and white matter probability) on our grid."""
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    template = {}
    for kind in ("t1", "gm", "wm"):
        image = nib.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        index = np.linalg.inv(image.affine) @ AFFINE
        template[kind] = ndimage.affine_transform(
            image.get_fdata(dtype=np.float32), index[:3, :3], index[:3, 3], SHAPE, order=1
        )
    return template


def voxelize(vertices, triangles, shape, per_axis=5):
    """Volume fraction of each voxel inside a closed surface.

    `per_axis` squared columns run through each voxel along the third axis; where a column pierces a triangle,
    everything behind it changes side. The crossing is placed exactly along the column.

    Parameters
    ----------
    vertices : ndarray, shape (n, 3)
        In voxels, centres at whole numbers.
    triangles : ndarray, shape (m, 3), int
    """
    points = np.empty((len(vertices), 3))
    points[:, :2] = (vertices[:, :2] + 0.5) * per_axis - 0.5 + 1e-7  # so that no column hits a vertex
    points[:, 2] = vertices[:, 2] + 0.5
    a, b, c = (points[triangles[:, k]] for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    low = np.ceil(np.minimum(np.minimum(a, b), c)[:, :2]).astype(int)
    high = np.floor(np.maximum(np.maximum(a, b), c)[:, :2]).astype(int)
    span = (high - low + 1).clip(0)
    depth = shape[2] + 2
    steps = np.zeros(shape[0] * shape[1] * depth)
    for i in range(span[:, 0].max()):
        for j in range(span[:, 1].max()):
            use = np.flatnonzero((span[:, 0] > i) & (span[:, 1] > j) & (area != 0))
            x, y = low[use, 0] + i, low[use, 1] + j
            p, q, r, size = a[use], b[use], c[use], area[use]
            of_q = ((x - p[:, 0]) * (r[:, 1] - p[:, 1]) - (y - p[:, 1]) * (r[:, 0] - p[:, 0])) / size
            of_r = ((q[:, 0] - p[:, 0]) * (y - p[:, 1]) - (q[:, 1] - p[:, 1]) * (x - p[:, 0])) / size
            hit = (of_q >= 0) & (of_r >= 0) & (of_q + of_r <= 1)
            z = (p[:, 2] + of_q * (q[:, 2] - p[:, 2]) + of_r * (r[:, 2] - p[:, 2]))[hit]
            sign, voxel = -np.sign(size[hit]), np.floor(z).astype(int)
            index = ((x[hit] // per_axis) * shape[1] + y[hit] // per_axis) * depth + voxel
            behind = z - voxel
            steps += np.bincount(index, sign * (1 - behind), steps.size) + np.bincount(
                index + 1, sign * behind, steps.size
            )
    inside = np.cumsum(steps.reshape(shape[0], shape[1], depth), axis=2)[:, :, :-2] / per_axis**2
    return np.abs(inside).clip(0, 1).astype(np.float32)


def inside_surface(kind, surfaces, world_to_voxel):
    total = np.zeros(SHAPE, np.float32)
    for side in "lr":
        vertices, triangles = surfaces[kind, side]
        total += voxelize(
            (world_to_voxel @ np.c_[vertices, np.ones(len(vertices))].T)[:3].T, triangles, SHAPE
        )
    return total.clip(0, 1)


def template_in_subject(t1w, pia, template):
    """Template T1w, tissue probabilities and template coordinates (mm), warped to the subject."""
    roughly = ndimage.binary_dilation(template["t1"] > 20, iterations=2) | ndimage.binary_dilation(
        pia > 0, iterations=2
    )
    fixed = to_ants(t1w * roughly, AFFINE)
    found = ants.registration(fixed, to_ants(template["t1"], AFFINE), "antsRegistrationSyNQuick[s]")

    def warped(volume):
        return ants.apply_transforms(fixed, to_ants(volume, AFFINE), found["fwdtransforms"]).numpy()

    position = np.tensordot(AFFINE[:3, :3], np.indices(SHAPE), 1) + AFFINE[:3, 3, None, None, None]
    return {kind: warped(volume) for kind, volume in template.items()}, np.stack(
        [warped(part) for part in position]
    )


def fractions(t1w, pia, white, template, position):
    """Tissue fractions and brain mask. White matter of this T1w is at 110, cortex near 78."""
    x, y, z = np.abs(position[0]), position[1], position[2]
    grey, tissue_prior = template["gm"] / 255, (template["gm"] + template["wm"]) / 255
    white = np.minimum(white, pia)
    ribbon = pia - white
    ribbon *= (
        ndimage.maximum_filter(ribbon, 3) > 0.6
    )  # at the medial wall the two surfaces should coincide, and nearly do
    inside, outside = pia - ribbon, 1 - pia

    # Inside the white surface: lateral ventricles, deep grey matter, the rest is white.
    central = (x < 42) & (y > -100) & (y < 45) & (z > -30) & (z < 40) & (template["t1"] > 10)
    fluid = np.median(t1w[largest(ndimage.binary_erosion((t1w < 50) & (white > 0.99) & central))])
    labels, _ = ndimage.label((t1w < 65) & (white > 0.9) & central)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    ventricles = ndimage.binary_dilation(np.isin(labels, np.flatnonzero(sizes > 150)), ball(2))
    from_cortex = ndimage.distance_transform_edt(ribbon <= 0.5)
    deep = (x < 38) & (y > -42) & (y < 28) & (z > -26) & (z < 26) & (from_cortex > 2.9)
    prior = ndimage.gaussian_filter(deep.astype(np.float32), 1) * np.clip(
        2 * ndimage.gaussian_filter(grey, 1), 0, 1
    )
    sgm = np.clip((107 - t1w) / (107 - 88), 0, 1) * prior
    wall = 110 - 22 * prior * ndimage.maximum_filter(
        sgm * (t1w > 75), 3
    )  # what a ventricle borders on: white or caudate
    vcsf = np.where(ventricles, np.clip((wall - 6 - t1w) / (wall - 6 - fluid), 0, 1), 0) * inside
    sgm = np.minimum(sgm * inside, inside - vcsf)
    wm = inside - vcsf - sgm

    # Outside the pial surface: cerebellum and brain stem, one thick piece.
    candidates = (t1w > 52) & (outside > 0.8) & (template["t1"] > 20) & (tissue_prior > 0.25) & (z > -66)
    core = largest(ndimage.distance_transform_edt(candidates) > 4)
    below = ndimage.binary_opening(grow(grow(core, 4.5) & candidates, 3) & candidates, ball(1))
    # S1's intensities are not flat down there: bring the local white level, an upper envelope, to 107.
    half = (slice(None, None, 2),) * 3
    envelope = ndimage.percentile_filter(np.where(below, t1w, 0)[half], 98, size=15)
    weight = ndimage.binary_erosion(below, iterations=2)[half].astype(np.float32)
    level = ndimage.gaussian_filter(envelope * weight, 6) / np.maximum(
        ndimage.gaussian_filter(weight, 6), 1e-3
    )
    level = ndimage.zoom(np.where(level > 60, level, 106), 2, order=1).clip(85, 130)
    edge = ndimage.binary_dilation(below, ball(1))
    flat = np.where(edge, t1w * 107 / level, t1w)
    tissue = np.where(edge & (outside > 0.5), np.clip((flat - fluid) / (70 - fluid), 0, 1), 0) * outside
    wm_below = np.clip((flat - 82) / (106 - 82), 0, 1) * tissue
    cerebellum = ~((x < 17) & (y > -46) & (z < 0)) & (z < 12) & (y < -28)
    cerebellum = ndimage.gaussian_filter(cerebellum.astype(np.float32), 1.5)
    cbm = (tissue - wm_below) * cerebellum
    sgm = sgm + (tissue - wm_below) * (1 - cerebellum)
    wm = wm + wm_below

    brain = brain_mask((ribbon + inside + tissue) > 0.5)
    return {"CGM": ribbon, "WM": wm, "SGM": sgm, "CBM": cbm, "VCSF": vcsf}, brain


def write(folder, subject, tissues, brain, origin):
    """Write the fractions in units of 1/255 that sum to 255 in every voxel of the brain: what tissue leaves
    is fluid."""
    left = np.where(brain, 255, 0)
    whole = {}
    for tissue, fraction in tissues.items():
        whole[tissue] = np.minimum(np.rint(fraction.clip(0, 1) * 255).astype(int), left)
        left = left - whole[tissue]
    whole["CSF"] = left
    for tissue, volume in whole.items():
        sidecar = {
            "Description": f"Volume fraction in units of 1/255 of {MEANING[tissue]}",
            "Resolution": "1 mm isotropic",
            "Type": "PVE",
            "SkullStripped": True,
            **origin,
        }
        path = folder / f"sub-{subject}_space-{SPACE}_label-{tissue}_probseg.nii.gz"
        volumes.write(path, volume.astype(np.uint8), AFFINE, sidecar)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="pycortex-1.4.0.tar.gz")
    parser.add_argument("folder", type=Path, help="where the result goes")
    arguments = parser.parse_args()

    raw, affine, surfaces, licence = read_source(arguments.source)
    template = read_template()
    index = np.linalg.inv(affine) @ TO_SOURCE @ AFFINE
    t1w = ndimage.affine_transform(raw, index[:3, :3], index[:3, 3], SHAPE, order=3).clip(0)
    world_to_voxel = np.linalg.inv(AFFINE) @ np.linalg.inv(TO_SOURCE)
    pia, white = (inside_surface(kind, surfaces, world_to_voxel) for kind in ("pia", "wm"))
    warped, position = template_in_subject(t1w, pia, template)
    region = ndimage.binary_dilation(warped["t1"] > 10, iterations=3) | (pia > 0)
    t1w = ants.denoise_image(
        to_ants(t1w, AFFINE), mask=to_ants(region, AFFINE), p=1, r=2, noise_model="Gaussian"
    ).numpy()
    tissues, brain = fractions(t1w, pia, white, warped, position)

    write(
        arguments.folder,
        "S1",
        tissues,
        brain,
        {
            "RawSources": SOURCE,
            "License": "BSD-2-Clause",
            "Script": "data/anatomy/make_anatomy.py",
            "SpatialReference": f"MNI152 2009a symmetric (as packaged with nilearn), rigid, {SPACE}",
        },
    )
    (arguments.folder / "LICENSE-pycortex.txt").write_text(licence)


if __name__ == "__main__":
    main()
