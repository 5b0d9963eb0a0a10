"""Brain masks of the embedded brains: tissue, closed over sulci and fissures, plus 1 mm."""

import numpy as np
from edt import edt
from scipy import ndimage


def ball(radius):
    offset = np.indices((2 * radius + 1,) * 3) - radius
    return (offset**2).sum(0) <= radius * radius + 0.5


def largest(mask):
    labels, _ = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def grow(mask, mm):
    return edt(~mask) <= mm


def close(mask, mm):
    padded = grow(np.pad(mask, mm + 2), mm)
    return (edt(padded) > mm)[(slice(mm + 2, -mm - 2),) * 3]


def open_ball(mask, mm):
    """Opening by a ball, as `ndimage.binary_opening` with `ball` does, but in seconds."""
    return grow(edt(mask) > mm, mm)


def fill_planes(mask):
    """Fill what is enclosed in a sagittal, coronal or axial plane, such as the cistern around the optic
    chiasm."""
    filled = mask.copy()
    for axis in range(3):
        for plane, whole in zip(np.moveaxis(filled, axis, 0), np.moveaxis(mask, axis, 0)):
            plane |= ndimage.binary_fill_holes(whole)
    return filled if np.array_equal(filled, mask) else fill_planes(filled)


def brain_mask(tissue):
    """Tissue, closed over sulci and cisterns, plus a rim of fluid; smooth, with no hole in any plane."""
    solid = largest(ndimage.binary_opening(tissue, ball(1)))
    brain = largest(open_ball(grow(fill_planes(close(solid, 6)), 1), 4))
    brain = ndimage.gaussian_filter(brain.astype(np.float32), 2) > 0.5
    brain |= ndimage.binary_dilation(solid, ball(1))
    return fill_planes(largest(open_ball(close(brain, 4), 3)))
