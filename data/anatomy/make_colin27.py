"""Make the second brain from Colin27, the average of 27 scans of one man.

Nobody needs to run this: its result lies beside it. It needs `pip install nilearn` besides this repository,
about ten minutes, and one image of Debian's package mricron-data::

    apt-get download mricron-data
    dpkg -x mricron-data_*.deb mricron
    python data/anatomy/make_colin27.py mricron/usr/share/mricron/templates/ch2.nii.gz data/anatomy

What happens:

1. The image is laid on our grid voxel by voxel, without interpolation: its voxels are of 1 mm there, too.
2. Two maps are warped to it (SyN): the template says where brain is, S1's tissue maps say which structure is
   where.
   Neither says how much of a voxel is what: that follows from intensities, which hardly have noise here.
3. Fluid, grey and white by linear mixing between their levels. Which grey matter a voxel belongs to is
   decided by a
   watershed from S1's structures, whose borders run where the image leaves the level of grey matter.
4. Colin27 was stretched to the size of an older template, larger than people are: its brain is shrunk to that
   of an adult
   man (`SCALE`). Only here it is interpolated, from finer voxels to coarser ones.
5. The brain mask as that of S1: the tissue, closed over sulci and fissures, plus 1 mm.

SyN samples at random on several threads: a second run agrees closely, not to the byte.
"""

import argparse
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
from edt import edt
from make_anatomy import read_template, to_ants, write
from masks import ball, brain_mask, grow, largest
from scipy import ndimage
from skimage.segmentation import watershed

from helpers.cohort import phantom, preparation
from helpers.grid import AFFINE, SHAPE
from helpers.layout import SPACE

SOURCE = (
    "Colin27, 1 mm, with skull (usr/share/mricron/templates/ch2.nii.gz of Debian's package mricron-data "
    "1.2.20211006+dfsg-4)"
)
#: Size in our grid over size in the source. The true size is not known: with this the tissue has 1.21 litres
#: (S1: 1.27).
SCALE = 0.91
#: Levels of the source: the middle of the ventricles, the peaks of cortex and of white matter.
FLUID, GREY, WHITE = 33, 84, 115
ORIGIN = {
    "RawSources": SOURCE,
    "License": "see LICENSE-colin27.txt",
    "Script": "data/anatomy/make_colin27.py",
    "SpatialReference": (
        f"MNI152 2009a symmetric (as packaged with nilearn), shrunk to {SCALE} of the source, {SPACE}"
    ),
}
CEREBRAL, DEEP, CEREBELLAR = 1, 2, 3


def read_source(path):
    """The image on our grid, voxel by voxel."""
    image = nib.load(path)
    index = np.linalg.inv(image.affine) @ AFFINE
    return ndimage.affine_transform(
        np.asarray(image.dataobj).astype(np.float32), index[:3, :3], index[:3, 3], SHAPE, order=0
    )


def warp(t1w, moving, volumes):
    """Bring `volumes`, which lie as the brain `moving` does, to the image by SyN."""
    fixed = to_ants(t1w, AFFINE)
    result = ants.registration(fixed, to_ants(moving, AFFINE), "antsRegistrationSyNQuick[s]")
    return {
        name: ants.apply_transforms(fixed, to_ants(volume, AFFINE), result["fwdtransforms"]).numpy()
        for name, volume in volumes.items()
    }


def ramp(image, low, high):
    """0 below `low`, 1 above `high`, linear between them."""
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)


def soft(mask, sigma):
    return ndimage.gaussian_filter(mask.astype(np.float32), sigma)


def find_brain(t1w, template):
    """Where tissue may be: one thick piece near the template's tissue, grown back into gyri and folia, and
    its edge."""
    near = template["t1"] > 20
    candidates = (t1w > 52) & near & (template["gm"] + template["wm"] > 38)
    core = largest(ndimage.binary_erosion(candidates & (t1w > 62), ball(2)))
    whole = ndimage.binary_dilation(core, ball(1), iterations=4, mask=candidates)
    whole = largest(ndimage.binary_opening(whole, np.ones((2, 2, 2))))
    return ndimage.binary_dilation(whole, ball(1)) & near


def find_ventricles(t1w, prior, near):
    """Fluid of the lateral ventricles: what floods from S1's before what floods from other fluid."""
    marks = np.zeros(SHAPE, np.int32)
    marks[(prior["VCSF"] > 0.6) & (t1w < 50)] = 1
    marks[(prior["CSF"] > 0.6) & (prior["VCSF"] < 0.05) & (t1w < 50)] = 2
    return (watershed(t1w, marks, mask=(t1w < 58) & near) == 1) & grow(prior["VCSF"] > 0.3, 10)


def find_structures(t1w, prior, where):
    """Cerebral cortex with its white matter, deep grey matter with the brain stem, or cerebellum."""
    marks = np.zeros(SHAPE, np.int32)
    grey = np.abs(t1w - GREY) < 12
    marks[(soft(prior["CGM"], 1) > 0.6) & grey] = CEREBRAL
    marks[
        ndimage.binary_erosion(prior["WM"] > 0.9, ball(2))
        & (soft(prior["CGM"], 6) > 0.15)
        & (soft(prior["CBM"], 5) < 0.02)
    ] = CEREBRAL
    marks[(soft(prior["SGM"], 1) > 0.6) & (t1w > 75) & (t1w < 110)] = DEEP
    marks[(soft(prior["CBM"], 1.5) > 0.6) & grey] = CEREBELLAR
    return watershed(np.abs(t1w - GREY), marks, mask=where)


def fractions(t1w, template, prior):
    """Tissue fractions in the source's voxels; what they leave is other fluid or no brain."""
    x, _, z = np.tensordot(AFFINE[:3, :3], np.indices(SHAPE), 1) + AFFINE[:3, 3, None, None, None]
    where = find_brain(t1w, template)
    structures = find_structures(t1w, prior, where)
    ventricles = find_ventricles(t1w, prior, template["t1"] > 20)
    at_ventricles = ndimage.binary_dilation(ventricles, ball(2))
    cerebral, below = structures == CEREBRAL, structures == CEREBELLAR

    # Dura and sinuses are as bright as a voxel of half cortex, half fluid, but not near white matter.
    white = ndimage.binary_opening((t1w > 97) & where, np.ones((2, 2, 2)))
    from_white = edt(~white)
    dura = (t1w < 76) & (from_white > np.where(cerebral, 4.5, 8))
    tissue = ramp(t1w, 40, np.where(below, 72, 77)) * (where & ~dura)

    # Surfaces of white matter: brain stem, corpus callosum. A thin sheet between white and fluid is both, not
    # grey.
    grey = cerebral & (t1w < 100) & (t1w > 58)
    thick = ndimage.binary_dilation(ndimage.binary_opening(grey, np.ones((3, 3, 3))), ball(1))
    callosum = (
        cerebral & ~thick & (np.abs(x) < 14) & grow(prior["VCSF"] > 0.3, 9) & (soft(prior["CGM"], 2) < 0.4)
    )
    stem = (structures == DEEP) & (z < -8)
    stem_surface = stem & (edt(t1w > 55) < 2.5)
    bare = callosum | stem_surface
    tissue = np.where(bare, ramp(t1w, 40, 104) * where, tissue)

    # Deep grey matter, and the lateral ventricles, which border on it or on white matter.
    deep = (structures == DEEP) & ~bare & (grow(prior["SGM"] > 0.3, 2) | (t1w < 95))
    deep = np.clip(soft(deep * tissue, 0.7) / np.maximum(soft(tissue, 0.7), 0.1), 0, 1)
    sgm = (1 - ramp(t1w, 93, 111)) * deep
    wall = WHITE - 27 * deep * ndimage.maximum_filter(sgm * (t1w > 80), 3)
    vcsf = np.where(at_ventricles, 1 - ramp(t1w, FLUID + 6, wall - 6), 0).astype(np.float32)
    tissue = np.where(at_ventricles, 1 - vcsf, tissue)
    sgm = sgm * tissue

    # The rest is white, or grey of the cortex or the cerebellum. Deep white matter is not quite as bright as
    # gyri.
    cgm = tissue * (1 - ramp(t1w, 89, 109)) * (cerebral & ~callosum & ~at_ventricles)
    cgm[cgm < 0.04] = 0
    cbm = tissue * (1 - ramp(t1w, 88, 106)) * below
    sgm = sgm * (tissue > 0) * ~below * (cgm == 0)
    return {"CGM": cgm, "WM": tissue - cgm - cbm - sgm, "SGM": sgm, "CBM": cbm, "VCSF": vcsf}


def shrink(tissues, template):
    """Bring the fractions to the size of an adult man, the middle of the brain where the template has it."""
    where = np.argwhere(sum(tissues.values()) > 0.5).mean(0)
    middle = np.argwhere(template["gm"] + template["wm"] > 127).mean(0)
    index = np.eye(3) / SCALE
    return {
        tissue: ndimage.affine_transform(
            fraction.astype(np.float32), index, where - middle / SCALE, order=3
        ).clip(0, 1)
        for tissue, fraction in tissues.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="ch2.nii.gz")
    parser.add_argument("folder", type=Path, help="where the result goes")
    arguments = parser.parse_args()

    t1w, template = read_source(arguments.source), read_template()
    near = ndimage.binary_dilation(template["t1"] > 20, iterations=4)
    warped = warp(t1w * near, template["t1"], template)
    near = ndimage.binary_dilation(warped["t1"] > 20, iterations=2)
    prior = warp(t1w * near, preparation.template("T1w")[0], phantom.anatomy())

    tissues = shrink(fractions(t1w, warped, prior), template)
    total = sum(tissues.values())
    tissues = {tissue: fraction / np.maximum(total, 1) for tissue, fraction in tissues.items()}
    write(arguments.folder, "Colin27", tissues, brain_mask(total > 0.5), ORIGIN)


if __name__ == "__main__":
    main()
