"""Lesions, volumes and agreement, on small brains whose truth is known."""

import math
import os
import tempfile

import numpy as np
import pytest

from helpers import grid
from helpers.analysis import downstream
from helpers.study import Resolution

SHAPE = (40, 44, 36)


def ball(centre, radius_mm, shape=SHAPE):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(axes, centre)) <= radius_mm**2


def brain_with_lesions():
    """White matter in a rind of grey matter, fluid in the middle, two lesions; T1w, FLAIR, labels."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball((20, 22, 18), 16)] = downstream.GREY
    labels[ball((20, 22, 18), 13)] = downstream.WHITE
    labels[ball((20, 22, 18), 4)] = downstream.FLUID
    labels[ball((11, 22, 18), 2)] = labels[ball((29, 22, 18), 3.5)] = downstream.LESION
    noise = np.random.default_rng(0).normal(0, 3, (2, *SHAPE))
    t1w = np.array([0, 30, 80, 120, 85.0])[labels] + noise[0]
    flair = np.array([0, 20, 100, 90, 160.0])[labels] + noise[1]
    return np.where(labels > 0, t1w, 0), np.where(labels > 0, flair, 0), labels


def test_atropos_finds_the_tissues_leaves_no_file_and_repeats_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others write to the common one at the same time
    t1w, _, labels = brain_with_lesions()
    found = downstream.segment_tissue(t1w, grid.AFFINE, labels > 0)
    again = downstream.segment_tissue(t1w, grid.AFFINE, labels > 0)
    assert np.array_equal(found, again)
    assert not os.listdir(tmp_path)
    known = (labels > 0) & (labels != downstream.LESION)
    assert np.mean(found[known] == labels[known]) > 0.97
    assert not found[labels == 0].any()


def test_slices_that_lie_apart_do_not_smooth_each_other():
    t1w, _, labels = brain_with_lesions()
    some, step = (slice(None), slice(None), slice(6, 32, 8)), np.diag([1, 1, 8, 1])
    apart = downstream.segment_tissue(t1w[some], grid.AFFINE @ step, labels[some] > 0)
    known = (labels[some] > 0) & (labels[some] != downstream.LESION)
    assert np.mean(apart[known] == labels[some][known]) > 0.97


def test_an_image_without_tissue_is_refused():
    with pytest.raises(ValueError, match="fewer than three values"):
        downstream.segment_tissue(np.ones(SHAPE), grid.AFFINE, ball((20, 22, 18), 5))


def test_lesions_are_found_and_bright_cortex_is_none():
    _, flair, labels = brain_with_lesions()
    # In T1w lesions look like grey matter, and so Atropos labels them.
    tissue = np.where(labels == downstream.LESION, downstream.GREY, labels)
    flair[ball((20, 6, 18), 2) & (labels > 0)] = 160  # at the surface
    found = downstream.segment_lesions(flair, tissue, grid.AFFINE)
    assert downstream.dice(labels == downstream.LESION, found) > 0.95
    assert not found[ball((20, 7, 18), 3)].any()


def test_no_bright_voxel_is_no_lesion():
    _, flair, labels = brain_with_lesions()
    tissue = np.where(labels == downstream.LESION, downstream.WHITE, labels)
    flair[tissue > 0] = 100
    assert not downstream.segment_lesions(flair, tissue, grid.AFFINE).any()


@pytest.mark.parametrize(("voxels", "counts"), [(14, 0), (15, 1)])
def test_a_lesion_is_no_smaller_than_a_ball_of_3_mm(voxels, counts):
    mask = np.zeros(SHAPE, bool)
    mask[5, 5, 5 : 5 + voxels] = True
    assert downstream.label_lesions(mask, grid.AFFINE)[1] == counts


def test_sections_of_a_preview_are_labelled_slice_by_slice():
    mask = np.zeros(SHAPE, bool)
    mask[5:9, 5:9, 3:5] = True
    assert downstream.label_lesions(mask, np.diag([1, 1, 11, 1]))[1] == 2
    assert downstream.label_lesions(mask, np.eye(4))[1] == 1


def test_missed_and_false_lesions_are_counted_by_size():
    reference = ball((8, 8, 8), 2) | ball((30, 30, 8), 2) | ball((20, 20, 20), 4) | ball((8, 30, 26), 6)
    found = ball((8, 8, 9), 2) | ball((20, 20, 20), 3) | ball((30, 8, 28), 2) | ball((30, 36, 28), 1)
    assert downstream.detect_lesions(reference, found, grid.AFFINE) == {
        "small": (2, 1),
        "medium": (1, 0),
        "large": (1, 1),
        "false": (3, 1),  # the fourth is too small to count
    }


def test_lesions_are_not_counted_in_a_preview():
    with pytest.raises(ValueError, match="slices lie 11 mm apart.*whole volumes"):
        downstream.detect_lesions(np.ones(SHAPE, bool), np.ones(SHAPE, bool), np.diag([1, 1, 11, 1]))


def test_areas_of_a_preview_estimate_volumes():
    labels = np.where(ball((20, 22, 18), 14), downstream.GREY, 0)
    labels[ball((20, 22, 18), 11)] = downstream.WHITE
    labels[ball((20, 22, 18), 6)] = downstream.FLUID
    labels[ball((29, 22, 18), 5)] = downstream.LESION
    region = ball((20, 22, 18), 9)
    whole = downstream.volumes_ml(labels, grid.AFFINE, region)
    step = grid.AFFINE @ np.diag([1, 1, 3, 1])
    some = downstream.volumes_ml(labels[..., ::3], step, region[..., ::3])
    assert set(whole) == {"lesion", "grey", "white", "fluid", "ventricles"}
    assert whole["fluid"] == whole["ventricles"] == np.count_nonzero(labels == 1) / 1000
    assert whole["white"] == np.count_nonzero(labels >= 3) / 1000  # lesions are white matter
    for name, volume in whole.items():
        assert some[name] == pytest.approx(volume, rel=0.15), name


def test_the_region_of_the_ventricles_reaches_some_mm_beyond_them():
    fraction = ball((20, 22, 18), 3).astype(float)
    region = downstream.ventricle_region(fraction)
    assert region[20, 22, 18 + 7] and not region[20, 22, 18 + 8]


def test_dice_of_equal_masks_is_one_and_of_empty_ones_unknown():
    mask, empty = ball((9, 9, 9), 3), np.zeros(SHAPE, bool)
    assert downstream.dice(mask, mask) == 1 and downstream.dice(mask, empty) == 0
    assert math.isnan(downstream.dice(empty, empty))


#: Shrout and Fleiss 1979, table 2: four judges rate six targets.
RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])


def test_intraclass_correlation_is_that_of_shrout_and_fleiss():
    assert round(downstream.intraclass_correlation(RATINGS), 2) == 0.29  # their ICC(2,1)


def test_intraclass_correlation_knows_agreement_from_bias():
    volume = np.array([1.0, 2, 4, 8])
    assert downstream.intraclass_correlation(np.c_[volume, volume]) == pytest.approx(1)
    assert downstream.intraclass_correlation(np.c_[volume, volume + 3]) < 0.8
    assert math.isnan(downstream.intraclass_correlation(np.ones((3, 2))))
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        downstream.intraclass_correlation(np.ones((1, 2)))


def test_limits_of_agreement_by_hand():
    bias, low, high = downstream.bland_altman(np.array([1.0, 2, 3]), np.array([2.0, 4, 6]))
    assert (bias, low, high) == pytest.approx((2, 2 - 1.96, 2 + 1.96))
    assert math.isnan(downstream.bland_altman(np.ones(1), np.ones(1))[1])


def test_panels_say_what_is_missed_and_show_the_slice_where_most_is():
    flair = np.where(ball((20, 22, 18), 16), 100.0, 0)
    small, large = ball((12, 22, 20), 2), ball((28, 22, 16), 3)
    thick = Resolution(5, 1.5)
    first, last = downstream.lesion_panels(
        [flair, flair], [small | large, large], grid.AFFINE, [None, thick], "axial"
    )
    assert (first["title"], last["title"]) == ("3D scans", "a slice every 6.5 mm")
    assert first["says"].startswith("2 lesions of 0.2 ml")
    share = 100 * (np.count_nonzero(large) / np.count_nonzero(small | large) - 1)
    assert last["says"] == f"1 of 2 missed, lesion volume {share:+.0f} %"
    assert np.count_nonzero(last["missed"]) == small[..., 20].sum() and not first["missed"].any()
    some = (slice(None), slice(None), slice(4, 36, 12))
    preview = downstream.lesion_panels(
        [flair[some]] * 2, [(small | large)[some]] * 2, np.diag([1, 1, 12, 1]), [None, thick], "axial"
    )
    assert preview[1]["says"] == "lesion volume +0 %"
    alone = (slice(None), slice(None), slice(16, 17))
    (single,) = downstream.lesion_panels(
        [flair[alone]], [large[alone]], np.diag([1, 1, 10, 1]), [None], "axial"
    )
    assert single["says"] == "1 lesions in this slice"
