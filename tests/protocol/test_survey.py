import csv
import gzip
import io
import itertools
import json
import os
import re

import matplotlib

matplotlib.use("Agg")

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from helpers import volumes
from helpers.protocol import figures as protocol_figures, reading, survey
from helpers.study import CONTRASTS, RESOLUTIONS

SAID = {"MRAcquisitionType": "2D", "SliceThickness": 5, "SpacingBetweenSlices": 6.5}
AFFINE = np.diag([1, 1, 6.5, 1])
PLANES = ("sagittal", "coronal", "axial")


def block(shape):
    """What passes for a head: values above a background of 0."""
    inner = [n * 3 // 4 for n in shape[:3]]
    volume = np.zeros(shape, np.uint8)
    where = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(shape, inner))
    pattern = 20 + sum(index * step for index, step in zip(np.indices(inner), (3, 5, 7))) % 149
    volume[where] = pattern.reshape(*pattern.shape, *[1] * (len(shape) - 3))
    return volume


def write_image(path, voxel_mm=(1, 1, 6.5), shape=(160, 160, 24), affine=None, units="mm"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(block(shape), np.diag([*voxel_mm, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def acquire(top, name="sub-01_T1w", sidecar=SAID, **image):
    """An acquisition of a BIDS folder: image and, unless None, sidecar."""
    folder = top / name.split("_")[0] / "anat"
    path = write_image(folder / f"{name}.nii", **image)
    if sidecar is not None:
        (folder / f"{name}.json").write_text(sidecar if isinstance(sidecar, str) else json.dumps(sidecar))
    return path


def rewrite(path, header):
    """Put another header before the same voxels."""
    path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])


def only(top):
    (row,) = reading.from_bids(top).to_dict("records")
    return row


# Orientation


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("signs", itertools.product((1, -1), repeat=3))
def test_every_storage_order_and_flip_shows_the_plane_across_the_slices(order, signs):
    # Array axis a runs along world axis order[a]; slices are stacked along the last array axis.
    affine = np.eye(4)
    affine[:3, :3] = 0
    for a, (world, sign) in enumerate(zip(order, signs)):
        affine[world, a] = sign * (1.0, 1.0, 5.0)[a]
    found = survey.slice_geometry(volumes.Header((200, 200, 30), np.array([1.0, 1.0, 5.0]), affine))
    assert (found["orientation"], found["oblique_deg"]) == (PLANES[order[2]], 0)
    assert (found["spacing_mm"], found["inplane_mm"], found["coverage_mm"]) == (5, 1, 150)


@given(
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
    across=st.sampled_from((0, 1, 2)),
    angle=st.floats(0, 30),
    tilt=st.floats(0, 360),
    voxel=st.floats(0.3, 1.5),
    ratio=st.floats(1.3, 8),
)
def test_an_oblique_stack_has_its_nearest_plane_and_its_angle(
    order, signs, across, angle, tilt, voxel, ratio
):
    voxel_mm = np.full(3, voxel)
    voxel_mm[across] *= ratio
    straight = np.zeros((3, 3))
    for a, (world, sign) in enumerate(zip(order, signs)):
        straight[world, a] = sign * voxel_mm[a]
    # Turn about an axis that lies in the slices, so that the normal turns by the whole angle.
    axis = np.zeros(3)
    axis[[w for w in range(3) if w != order[across]]] = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(np.radians(angle) * axis).as_matrix() @ straight
    found = survey.slice_geometry(volumes.Header((100, 100, 100), voxel_mm, affine))
    assert found["orientation"] == PLANES[order[across]]
    assert found["oblique_deg"] == pytest.approx(angle, abs=1e-6)


def test_the_normal_of_a_sheared_stack_is_that_of_its_slices():
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[0, 2] = 4  # each slice is shifted sideways; none is turned
    assert (
        survey.slice_geometry(volumes.Header((9, 9, 9), nib.affines.voxel_sizes(affine), affine))[
            "oblique_deg"
        ]
        == 0
    )


@pytest.mark.parametrize("bad", ([0, 0, 0], [1, 2], [np.nan, 0, 1]))
def test_a_normal_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="normal of the slices"):
        survey.orientation(bad)


# Lengths


@pytest.mark.parametrize(
    "value", (5, "5", "5mm", " 5.0 mm ", "0.5 cm", "0.005m", "5e3 um", "+.5e1", "5,0", "0,5 cm")
)
def test_a_length_may_name_its_unit(value):
    assert survey.millimetres(value) == pytest.approx(5)


@pytest.mark.parametrize("value", (None, "", "n/a", float("nan"), "NaN", "NA", "#N/A", "null", "-"))
def test_nothing_said_is_unknown(value):
    assert np.isnan(survey.millimetres(value))


@pytest.mark.parametrize(
    "thickness, reason",
    [
        (0, "thickness_mm is 0: accepted are 0.1 to 20"),
        (-3, "thickness_mm is -3: accepted"),
        (0.005, "thickness_mm is 0.005, perhaps in metres: accepted"),
        (5000, "thickness_mm is 5000: accepted"),
        (float("inf"), "thickness_mm is inf: accepted"),
        (10**400, "thickness_mm is inf: accepted"),
        ("thick", "thickness_mm is 'thick': accepted is a number of mm"),
        ("5 inches", "thickness_mm is '5 inches': accepted"),
        ([5, 5], "thickness_mm is [5, 5]: accepted"),
        (True, "thickness_mm is True: accepted"),
        ({"a": "b" * 1000}, "thickness_mm is {'a': 'bbb"),
    ],
)
def test_a_thickness_that_cannot_be_is_a_reason_and_no_number(thickness, reason):
    said = {
        "contrast": "T1w",
        "thickness_mm": thickness,
        "spacing_mm": 6.5,
        "dimension": "2D",
        "orientation": "axial",
        "file": "x",
    }
    row = survey.acquisition(said)
    assert reason in row["unfit"] and "\n" not in row["unfit"] and len(row["unfit"]) < 200
    # Nor is the spacing taken in its place, as it is where nobody says anything.
    assert np.isnan(row["thickness_mm"]) and row["thickness_from"] == ""
    assert row["file"] == "x"


def test_two_of_thickness_gap_and_spacing_give_the_third():
    for said in (
        {"thickness_mm": 5, "gap_mm": 1.5},
        {"thickness_mm": 5, "spacing_mm": 6.5},
        {"gap_mm": 1.5, "spacing_mm": 6.5},
    ):
        row = survey.acquisition({"contrast": "T1w", "dimension": "2D", "orientation": "axial", **said})
        assert (row["thickness_mm"], row["gap_mm"], row["spacing_mm"], row["unfit"]) == (5, 1.5, 6.5, "")
    row = survey.acquisition({"contrast": "T1w", "thickness_mm": 5, "gap_mm": 1, "spacing_mm": 6.5})
    assert "gap_mm is 1 with slices of 5 mm that lie 6.5 mm apart" in row["unfit"]


def test_a_thickness_that_nobody_states_is_the_spacing_and_its_gap_stays_unknown():
    row = survey.acquisition({"contrast": "T1w", "spacing_mm": 6, "orientation": "axial"})
    assert (row["thickness_mm"], row["thickness_from"], row["unfit"]) == (6, "spacing", "")
    assert np.isnan(row["gap_mm"])


@pytest.mark.parametrize(
    "said, dimension",
    [
        ({"thickness_mm": 1, "spacing_mm": 1, "inplane_mm": 1}, "3D"),
        ({"thickness_mm": 5, "spacing_mm": 5, "inplane_mm": 0.9}, "2D"),
        ({"thickness_mm": 1.2, "spacing_mm": 1.2, "inplane_mm": 0.5}, "3D"),  # anisotropic, but thin
        ({"thickness_mm": 2, "spacing_mm": 2, "inplane_mm": 1.5}, "3D"),  # thick, but nearly isotropic
        ({"thickness_mm": 1.5, "spacing_mm": 1.8, "inplane_mm": 1}, "2D"),  # partitions have no gap
        ({"thickness_mm": 4, "spacing_mm": 2, "inplane_mm": 1}, "3D"),  # slices of 2D do not overlap so
        ({"thickness_mm": 5}, "2D"),
        ({}, ""),
        ({"dimension": "3d", "thickness_mm": 5, "spacing_mm": 6}, "3D"),  # who says so is right
    ],
)
def test_2d_and_3d_follow_from_the_geometry_where_nobody_says(said, dimension):
    row = survey.acquisition({"contrast": "T1w", **said})
    assert row["dimension"] == dimension
    assert row["dimension_from"] == ("said" if "dimension" in said else "geometry" if dimension else "")
    assert ("dimension is unknown" in row["unfit"]) == (dimension == "")


def test_a_3d_acquisition_has_no_gap():
    assert np.isnan(
        survey.acquisition({"contrast": "T1w", "dimension": "3D", "thickness_mm": 2, "spacing_mm": 1})[
            "gap_mm"
        ]
    )


@pytest.mark.parametrize(
    "said, reason",
    [
        ({"spacing_mm": 4}, "slices of 5 mm overlap, they lie 4 mm apart"),
        ({"oblique_deg": 44}, "slices lie 44 degrees from the nearest plane"),
        ({"coverage_mm": 60}, "slices cover 60 mm"),
        ({"orientation": ""}, "orientation is unknown"),
        ({"orientation": "oblique"}, "orientation is 'oblique': accepted are axial"),
        ({"thickness_mm": None}, "thickness_mm is unknown"),
        ({"dimension": "4D"}, "dimension is '4D': accepted are 2D, 3D"),
        ({"inplane_mm": 0}, "inplane_mm is 0: accepted"),
    ],
)
def test_what_makes_an_acquisition_unfit_is_said(said, reason):
    good = {"contrast": "T1w", "dimension": "2D", "orientation": "axial", "thickness_mm": 5, "file": "x"}
    assert survey.acquisition(good)["unfit"] == ""
    assert reason in survey.acquisition(good | said)["unfit"]


# BIDS


def test_an_acquisition_is_read_from_its_sidecar_and_its_header(tmp_path):
    acquire(tmp_path, "sub-01_ses-b_T2w")
    row = only(tmp_path)
    assert row == {
        "subject": "01",
        "session": "b",
        "contrast": "T2w",
        "dimension": "2D",
        "orientation": "axial",
        "oblique_deg": 0,
        "thickness_mm": 5,
        "gap_mm": 1.5,
        "spacing_mm": 6.5,
        "inplane_mm": 1,
        "coverage_mm": 156,
        "dimension_from": "said",
        "thickness_from": "said",
        "unfit": "",
        "file": "",
    }


def test_a_header_speaks_where_the_sidecar_is_silent(tmp_path):
    acquire(tmp_path, sidecar=None, voxel_mm=(4, 0.9, 0.9), shape=(40, 200, 200))
    row = only(tmp_path)
    assert (row["orientation"], row["dimension"], row["dimension_from"]) == ("sagittal", "2D", "geometry")
    assert (row["thickness_mm"], row["thickness_from"], row["unfit"]) == (4, "spacing", "")


def test_a_header_in_metres_or_micrometres_is_converted(tmp_path):
    for units, factor in (("meter", 1e-3), ("micron", 1e3)):
        path = write_image(tmp_path / f"{units}.nii.gz", voxel_mm=np.array([1, 1, 6.5]) * factor, units=units)
        header = volumes.read_header(path)
        np.testing.assert_allclose(header.voxel_mm, [1, 1, 6.5], rtol=1e-6)
        np.testing.assert_allclose(np.diag(header.affine), [1, 1, 6.5, 1], rtol=1e-6)


def test_a_header_without_a_position_has_no_affine(tmp_path):
    path = acquire(tmp_path)
    header = nib.load(path).header
    header["sform_code"] = header["qform_code"] = 0
    rewrite(path, header)
    assert volumes.read_header(path).affine is None
    assert only(tmp_path)["unfit"] == (
        "neither qform nor sform is set, so left and right cannot be told: accepted is a header with one of "
        "them; orientation is unknown"
    )


def test_what_lies_nearer_to_the_image_overrides(tmp_path):
    for subject in ("01", "02"):
        for run in ("1", "2"):
            acquire(tmp_path, f"sub-{subject}_run-{run}_T1w", sidecar=None, voxel_mm=(1, 1, 6))
    (tmp_path / "T1w.json").write_text(
        json.dumps({"MRAcquisitionType": "2D", "SliceThickness": 3, "SpacingBetweenSlices": 6})
    )
    (tmp_path / "T2w.json").write_text(json.dumps({"SliceThickness": 2}))  # another suffix
    (tmp_path / "run-2_T1w.json").write_text(
        json.dumps({"SliceThickness": 3.5})
    )  # same folder, more entities
    (tmp_path / "sub-02" / "sub-02_T1w.json").write_text(json.dumps({"SliceThickness": 4}))
    (tmp_path / "sub-02" / "sub-01_T1w.json").write_text(
        json.dumps({"SliceThickness": 1})
    )  # another subject's
    (tmp_path / "sub-02" / "anat" / "sub-02_run-1_T1w.json").write_text(json.dumps({"SliceThickness": 5}))
    table = reading.from_bids(tmp_path)
    assert dict(zip(zip(table.subject, [1, 2, 1, 2]), table.thickness_mm)) == {
        ("01", 1): 3,
        ("01", 2): 3.5,
        ("02", 1): 5,
        ("02", 2): 4,
    }
    assert set(table.dimension) == {"2D"} and not table.unfit.any()


def test_sidecars_alone_are_a_collection(tmp_path):
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    # A sagittal slice in DICOM's words: rows run to the back, columns to the feet.
    (folder / "sub-01_FLAIR.json").write_text(
        json.dumps({**SAID, "ImageOrientationPatientDICOM": [0, 1, 0, 0, 0, -1]})
    )
    row = only(tmp_path)
    assert (row["orientation"], row["oblique_deg"], row["thickness_mm"], row["unfit"]) == (
        "sagittal",
        0,
        5,
        "",
    )


SAGITTAL = [0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize(
    "said", [{"SliceThickness": 1.2, "SpacingBetweenSlices": 1.2}, {"SliceThickness": 1.2}, {}]
)
@pytest.mark.parametrize("thick_mm", [1.0, 1.0156, 1.2])
def test_where_no_axis_is_the_thick_one_the_cosines_decide_however_the_image_is_stored(
    tmp_path, said, thick_mm
):
    # Stored right, anterior, superior, though the slices are sagittal.
    said = {key: thick_mm for key in said}
    sidecar = {"MRAcquisitionType": "3D", "ImageOrientationPatientDICOM": SAGITTAL, **said}
    acquire(tmp_path, sidecar=sidecar, voxel_mm=(thick_mm, 1.0156, 1.0156), shape=(170, 200, 200))
    row = only(tmp_path)
    assert (row["orientation"], row["spacing_mm"], row["thickness_mm"], row["unfit"]) == (
        "sagittal",
        thick_mm,
        thick_mm,
        "",
    )


@pytest.mark.parametrize("name", ["SliceThickness", "SpacingBetweenSlices"])
def test_without_cosines_the_axis_that_alone_is_as_long_as_said_is_across_the_slices(tmp_path, name):
    acquire(
        tmp_path,
        sidecar={"MRAcquisitionType": "3D", name: 1.2},
        voxel_mm=(1.2, 1.0156, 1.0156),
        shape=(170, 200, 200),
    )
    row = only(tmp_path)
    assert (row["orientation"], row["spacing_mm"], row["unfit"]) == ("sagittal", 1.2, "")


@given(
    turn=st.tuples(*[st.floats(-0.4, 0.4)] * 3),
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
)
def test_the_cosines_find_the_axis_of_any_storage(turn, order, signs):
    # Slices acquired across world axis 0, turned; stored in any order and direction.
    rotation = Rotation.from_rotvec(turn).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = (rotation * signs)[:, order]
    found = survey.slice_geometry(volumes.Header((200, 200, 200), np.ones(3), affine), normal=rotation[:, 0])
    expected = survey.orientation(rotation[:, 0])
    assert found["orientation"] == expected[0] and found["oblique_deg"] == pytest.approx(
        expected[1], abs=1e-6
    )
    assert "contradiction" not in found


def test_thick_slices_across_another_axis_than_the_cosines_say_are_a_contradiction(tmp_path):
    acquire(tmp_path, sidecar={**SAID, "ImageOrientationPatientDICOM": SAGITTAL})
    assert (
        only(tmp_path)["unfit"]
        == "slices are axial in the image and sagittal in the sidecar's cosines: reformatted?"
    )


@pytest.mark.parametrize("cosines", ("x", [1, 0], [0] * 6, [[1]], {"a": 1}, ["a"] * 6))
def test_cosines_that_are_none_leave_the_orientation_unknown(tmp_path, cosines):
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_FLAIR.json").write_text(json.dumps({**SAID, "ImageOrientationPatientDICOM": cosines}))
    unfit = only(tmp_path)["unfit"]
    assert unfit.startswith("ImageOrientationPatientDICOM is ")
    assert unfit.endswith(
        ": accepted are six numbers, the directions of rows and columns; orientation is unknown"
    )


def test_a_resampled_image_is_found_out(tmp_path):
    acquire(tmp_path, voxel_mm=(1, 1, 1), shape=(160, 160, 160))
    row = only(tmp_path)
    assert "said to be 6.5 mm apart and lie 1 mm apart in the image" in row["unfit"]
    assert row["spacing_mm"] == 1 and np.isnan(row["gap_mm"])


@pytest.mark.parametrize(
    "content, reason",
    [
        ("", "sub-01_T1w.json: not a JSON object"),
        ("{", "sub-01_T1w.json: not a JSON object"),
        ("[1]", "it holds [1]"),
        ("[" * 100_000, "not a JSON object"),
        ('{"SliceThickness": 5, "SliceThickness": 4}', "SliceThickness is there twice with different values"),
        ('{"slicethickness": 5}', "unknown key slicethickness: accepted is SliceThickness"),
        (b"\xff\xfe\x00", "not a JSON object"),
        (b" " * (5 * 2**20), "it has 5242880 bytes"),
    ],
)
def test_a_broken_sidecar_is_listed_and_ends_nothing(tmp_path, content, reason):
    path = acquire(tmp_path)
    path.with_suffix(".json").write_bytes(content if isinstance(content, bytes) else content.encode())
    acquire(tmp_path, "sub-02_T1w")
    table = reading.from_bids(tmp_path)
    assert list(table.unfit != "") == [True, False]
    assert reason in table.unfit[0]
    assert list(table.file) == [os.path.join("sub-01", "anat", "sub-01_T1w.nii"), ""]


def test_a_sidecar_that_is_a_link_to_nothing_is_named_once(tmp_path):
    sidecar = acquire(tmp_path).with_suffix(".json")
    sidecar.unlink()
    sidecar.symlink_to("nowhere")
    name = os.path.join("sub-01", "anat", "sub-01_T1w.json")
    assert only(tmp_path)["unfit"] == f"{name}: a link to nothing"


def test_a_sidecar_with_a_byte_order_mark_is_read(tmp_path):
    path = acquire(tmp_path)
    path.with_suffix(".json").write_bytes(b"\xef\xbb\xbf" + json.dumps(SAID).encode())
    assert only(tmp_path)["unfit"] == ""


def test_missing_truncated_and_4d_images_are_listed(tmp_path):
    acquire(tmp_path, "sub-01_T1w").unlink()
    acquire(tmp_path, "sub-02_T1w").write_bytes(b"hello")
    acquire(tmp_path, "sub-03_T1w", shape=(160, 160, 24, 5))
    acquire(tmp_path, "sub-04_T1w", shape=(160, 160, 24, 1))
    flat = acquire(tmp_path, "sub-05_T1w")
    header = nib.load(flat).header
    header["srow_z"] = 0
    rewrite(flat, header)
    table = reading.from_bids(tmp_path).set_index("subject")
    reasons = {
        "01": "no image beside",
        "02": "not a readable NIfTI volume",
        "03": "accepted are 3D volumes",
        "05": "accepted is an invertible",
    }
    for subject, reason in reasons.items():
        assert reason in table.unfit[subject]
        assert str(tmp_path) not in table.unfit[subject]
    assert table.unfit["04"] == ""
    # What the sidecar says is not lost with the image.
    assert table.thickness_mm["01"] == 5


def test_a_sheared_image_and_a_folder_in_the_place_of_one_are_listed(tmp_path):
    # Shifted sideways by 4 mm from slice to slice.
    sheared = acquire(tmp_path, "sub-01_T1w")
    header = nib.load(sheared).header
    header["srow_x"][2] = 4
    rewrite(sheared, header)
    (tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz").mkdir(parents=True)
    table = reading.from_bids(tmp_path)
    assert any("off the right angle: accepted are grids with right angles" in why for why in table.unfit)
    assert "a folder in the place of an image: accepted is a file" in list(table.unfit)


def test_images_of_other_formats_are_not_passed_over_and_twins_not_counted_twice(tmp_path):
    acquire(tmp_path)
    for name in ("sub-01_T2w.NII.GZ", "sub-01_T2w.mgz", "sub-01_FLAIR.nii.bz2"):
        (tmp_path / "sub-01" / "anat" / name).touch()
    assert list(reading.from_bids(tmp_path).unfit) == ["is no .nii or .nii.gz file"] * 3 + [""]
    plain = tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii"
    plain.with_suffix(".nii.gz").write_bytes(gzip.compress(plain.read_bytes(), 1))
    unfit = list(reading.from_bids(tmp_path).unfit)
    assert unfit[3:] == ["there is a second file of this name, compressed or not: accepted is one"] * 2


def test_partitions_of_a_3d_image_that_lie_farther_apart_than_they_are_thick_are_a_contradiction(tmp_path):
    said = {"MRAcquisitionType": "3D", "SliceThickness": 1}
    acquire(tmp_path, sidecar=said, voxel_mm=(1, 1, 5))
    assert "partitions of 1 mm that lie 5 mm apart" in only(tmp_path)["unfit"]


def test_an_image_that_a_study_would_refuse_is_unfit_before_it_is_tried(tmp_path):
    content = gzip.compress(nib.Nifti1Image(block((160, 160, 24)), AFFINE).to_bytes(), 0, mtime=0)
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 0x40
    # One missing number, z-scores, a mask.
    voxels = block((160, 160, 24)).astype(np.float32)
    missing, scores, mask = voxels.copy(), (voxels - voxels.mean()) / voxels.std(), voxels > 0
    missing[80, 80, 12] = np.nan
    files = {"whole": content, "flipped": bytes(flipped), "cut": content[:-8]}
    for name, values in (("missing", missing), ("scores", scores), ("mask", mask.astype(np.uint8))):
        files[name] = gzip.compress(nib.Nifti1Image(values, AFFINE).to_bytes(), 1)
    for name, stored in files.items():
        acquire(tmp_path, f"sub-{name}_FLAIR").unlink()
        (tmp_path / f"sub-{name}" / "anat" / f"sub-{name}_FLAIR.nii.gz").write_bytes(stored)
    # A contrast that the study has no use for is not read.
    acquire(tmp_path, "sub-whole_PDw").with_suffix(".nii.gz").write_bytes(bytes(flipped))
    (tmp_path / "sub-whole" / "anat" / "sub-whole_PDw.nii").unlink()
    table = reading.from_bids(tmp_path)
    assert list(table.unfit[table.subject == "whole"]) == ["", ""]
    reasons = table.set_index("subject").unfit.drop("whole")
    expected = {
        "flipped": "not a readable NIfTI volume (CRC check failed",
        "cut": "not a readable NIfTI volume",
        "missing": "has 1 voxels that are NaN or infinite: accepted are finite numbers",
        "scores": "accepted are magnitude images",
        "mask": "2 different values, a mask or a segmentation",
    }
    assert set(reasons.index) == set(expected)
    for name, words in expected.items():
        assert words in reasons[name] and "\n" not in reasons[name] and str(tmp_path) not in reasons[name]


def test_links_are_not_followed_out_of_the_folder_nor_round_in_loops(tmp_path):
    top, outside = tmp_path / "bids", tmp_path / "outside"
    acquire(top, "sub-01_T1w")
    secret = acquire(outside, "sub-09_T1w", sidecar={**SAID, "SliceThickness": 2})
    anat = top / "sub-01" / "anat"
    (anat / "loop").symlink_to(top)
    (top / "sub-09").symlink_to(outside / "sub-09")
    (anat / "sub-01_run-1_T1w.nii").symlink_to(secret)
    (anat / "sub-01_run-1_T1w.json").symlink_to(secret.with_suffix(".json"))
    (anat / "sub-01_run-2_T1w.nii").symlink_to("sub-01_run-2_T1w.nii")
    # As DataLad keeps its images: a link to a file inside.
    hidden = write_image(top / ".git" / "annex" / "x.nii")
    (anat / "sub-01_run-3_T1w.nii").symlink_to(hidden)
    (anat / "sub-01_run-4_T1w.nii").symlink_to("nowhere.nii")
    os.mkfifo(anat / "sub-01_run-5_T1w.json")
    table = reading.from_bids(top).set_index("file")
    reasons = {os.path.basename(file): reason for file, reason in table.unfit.items()}
    assert "link to a folder" in reasons["loop"] and "link to a folder" in reasons["sub-09"]
    assert reasons["sub-01_run-1_T1w.nii"].count("a link out of the folder") == 2
    assert 2 not in set(table.thickness_mm)
    assert (
        "a link" in reasons["sub-01_run-2_T1w.nii"] and "a link to nothing" in reasons["sub-01_run-4_T1w.nii"]
    )
    assert "not a regular file" in reasons["sub-01_run-5_T1w.json"]
    assert len(table) == 8 and sum(table.unfit == "") == 2
    # Folders that were not entered are no acquisitions.
    assert survey.counts(table.reset_index()).loc[("all", ""), "all"] == 6


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    acquire(tmp_path, "sub-01_T1w")
    acquire(tmp_path, "sub-02_T1w")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("sub-02"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    table = reading.from_bids(tmp_path)
    assert list(survey.unfit(table).file) == ["sub-02"]
    assert "folder cannot be read (Permission denied)" in survey.unfit(table).unfit[0]


def test_other_folders_are_passed_over_and_other_suffixes_counted(tmp_path):
    acquire(tmp_path, "sub-01_T1w")
    acquire(tmp_path, "sub-01_PDw", sidecar={"SliceThickness": 0})
    for folder in ("derivatives/x", "sourcedata", "code", ".git"):
        acquire(tmp_path / folder, "sub-01_T1w")
    write_image(tmp_path / "sub-01" / "func" / "sub-01_bold.nii")
    (tmp_path / "dataset_description.json").write_text("{broken")
    table = reading.from_bids(tmp_path)
    assert sorted(table.contrast) == ["T1w", "other"] and not table.unfit.any()


def test_a_name_without_a_subject_is_listed(tmp_path):
    write_image(tmp_path / "anat" / "T1w.nii")
    assert "name has no sub-<label>" in only(tmp_path)["unfit"]


def test_file_names_stay_inside_unless_unfit(tmp_path):
    acquire(tmp_path, "sub-01_acq-DrSmith19700101_T1w")
    assert "Smith" not in reading.from_bids(tmp_path).to_csv()
    acquire(tmp_path, "sub-02_acq-DrSmith19700101_T1w", sidecar="{")
    assert "Smith" in survey.unfit(reading.from_bids(tmp_path)).file[0]


def test_a_folder_that_is_none_is_refused(tmp_path):
    accepted = "accepted is the folder of a BIDS data set"
    with pytest.raises(FileNotFoundError, match=f"none: no such folder: {accepted}"):
        reading.from_bids(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=f"file: a file: {accepted}"):
        reading.from_bids(tmp_path / "file")


def test_an_empty_folder_gives_an_empty_table_that_can_be_counted(tmp_path):
    table = reading.from_bids(tmp_path)
    assert tuple(table.columns) == survey.COLUMNS and len(table) == 0
    assert survey.counts(table).to_numpy().sum() == 0
    assert (
        len(survey.thickness_histogram(table))
        == len(survey.resolutions(table))
        == len(survey.unfit(table))
        == 0
    )


# CSV


def test_a_csv_in_the_words_of_bids_is_read(tmp_path):
    path = tmp_path / "x.csv"
    header = "contrast,MRAcquisitionType,SliceThickness,SpacingBetweenSlices,orientation,secret"
    path.write_text(f"{header}\nflair,2D,5mm,6.5,Axial,x\nT1,,,,,\n")
    table = reading.from_csv(path)
    assert list(table.contrast) == ["FLAIR", "other"]
    assert (table.gap_mm[0], table.orientation[0], table.unfit[0]) == (1.5, "axial", "")
    assert "secret" not in table


def test_the_table_of_a_survey_is_read_back_as_it_was(tmp_path):
    table = survey.simulated().sample(300, random_state=0).reset_index(drop=True)
    table.to_csv(tmp_path / "x.csv", index=False)
    back = reading.from_csv(tmp_path / "x.csv")
    said = [name for name in survey.COLUMNS if name != "file"]
    pd.testing.assert_frame_equal(back[said], table[said])


def test_a_csv_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: accepted is a CSV table or the folder"):
        reading.from_csv(tmp_path / "x.csv")
    for content, message in (
        (b"", "not a CSV table"),
        (b"\xff\xfe\x00a", "not a CSV table"),
        (b"a,b\n1,2\n", "no column contrast"),
        (b"PK\x03\x04" + bytes(99), "not a CSV table but a workbook: accepted is one saved as CSV"),
        (b"contrast,SliceThickness,thickness_mm\nT1w,1,2\n", "thickness_mm is there twice"),
    ):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            reading.from_csv(tmp_path / "x.csv")


HEADER = "subject,contrast,MRAcquisitionType,SliceThickness,SpacingBetweenSlices,orientation"
ROWS = (
    ("01", "T2w", "2D", "5", "6.5", "axial"),
    ("02", "T1w", "3D", "1", "1.25", "sagittal"),
    ("Mü, ;\tx", "FLAIR", "2D", "3.5", "", ""),
)


def in_words(name):
    """``SliceThickness`` -> ``Slice Thickness (mm)``, as people head a column."""
    words = re.sub("(?<=[a-z])(?=[A-Z])", " ", name)
    return f"{words} (mm)" if name.startswith(("SliceT", "Spacing")) else words


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    separator=st.sampled_from(",;\t"),
    quote_all=st.booleans(),
    decimal_comma=st.booleans(),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    declared=st.booleans(),
    trailing=st.tuples(*[st.integers(0, 2)] * 4),
    blank=st.sampled_from(["", "\n", ",,,\n"]),
    case=st.sampled_from([str, str.lower, str.upper, in_words]),
    order=st.permutations(range(6)),
)
def test_a_table_is_read_the_same_however_a_spreadsheet_writes_it(
    tmp_path_factory,
    separator,
    quote_all,
    decimal_comma,
    ends,
    encoding,
    declared,
    trailing,
    blank,
    case,
    order,
):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    text = io.StringIO()
    write = csv.writer(
        text,
        delimiter=separator,
        lineterminator=ends,
        quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL,
    )
    if declared:
        text.write(f"sep={separator}{ends}")
    for row, extra in zip((tuple(map(case, HEADER.split(","))), *ROWS), trailing, strict=True):
        cells = [
            row[number].replace(".", ",") if decimal_comma and number in (3, 4) else row[number]
            for number in order
        ]
        write.writerow([*cells, *[""] * extra] if row in ROWS else cells)
    text.write(blank.replace(",", separator).replace("\n", ends))
    path.write_bytes(text.getvalue().encode(encoding))
    table = reading.from_csv(path)
    assert list(table.subject) == ["01", "02", ROWS[2][0]]
    assert list(table.contrast) == ["T2w", "T1w", "FLAIR"]
    np.testing.assert_array_equal(table.thickness_mm, [5, 1, 3.5])
    np.testing.assert_array_equal(table.spacing_mm, [6.5, 1.25, np.nan])
    assert list(table.orientation) == ["axial", "sagittal", ""]


@pytest.mark.parametrize(
    "content, message",
    [
        (
            f"{HEADER}\n01,T2w,2D,5,6.5,axial\n02,T1w,3D,1,1,sagittal,note\n",
            "line 3 has 7 cells, the header 6: accepted are as many",
        ),
        (f"{HEADER}\n01,T2w,2D,5,5,6.5,axial\n", "line 2 has 7 cells"),  # decimal commas without quotes
        (f'{HEADER}\n"0\n1",T2w,2D,5,6.5,axial\n02,T1w\n', "line 4 has 2 cells, the header 6"),
        (f'{HEADER}\n01,"T2w,2D,5,6.5,axial\n', "not a CSV table: line 2: unexpected end of data"),
        ("name;dose\n1;2\n", "not a CSV table: no column contrast among 'name', 'dose': accepted"),
        (HEADER.encode() + b"\nM\xfcller,T2w,2D,5,6.5,axial\n", "not a CSV table: line 2 is no UTF-8"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_and_no_column_shifts(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        reading.from_csv(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_what_programs_write_for_nothing_is_no_reason(tmp_path):
    rows = "".join(f"T2w,5,{word},2D,axial,{word}\n" for word in ("", "NA", "n/a", "-", "#N/A"))
    (tmp_path / "x.csv").write_text("contrast,thickness_mm,gap_mm,dimension,orientation,session\n" + rows)
    assert not reading.from_csv(tmp_path / "x.csv").unfit.any()


def test_a_comma_that_may_stand_for_thousands_is_a_reason(tmp_path):
    (tmp_path / "x.csv").write_text("contrast;SliceThickness\nT2w;1,000\n")
    assert (
        "thickness_mm is '1,000': accepted is a number of mm" in reading.from_csv(tmp_path / "x.csv").unfit[0]
    )


# The example and what is counted


@pytest.fixture(scope="module")
def example():
    return survey.simulated()


def test_the_example_has_the_published_margins(example):
    counts = survey.counts(example)
    published = {("T1w", "3D"): 3413, ("T2w", "3D"): 151, ("FLAIR", "3D"): 2088}
    published |= {("T1w", "2D"): 5832, ("T2w", "2D"): 3458, ("FLAIR", "2D"): 2114}
    assert {index: counts.loc[index, "all"] for index in published} == published
    assert counts.loc[("all", "")].to_dict() == {
        "axial": 15852,
        "sagittal": 1020,
        "coronal": 184,
        "all": 17056,
    }
    assert (
        counts.loc[(slice(None), "3D"), "all"].sum() == 5652
        and counts.loc[(slice(None), "2D"), "all"].sum() == 11404
    )
    # Whether the paper counts orientations among all or among the 2D acquisitions, they agree, and each
    # contrast is mostly axial.
    flat = counts.loc[(slice(None), "2D"), :]
    assert flat["sagittal"].sum() == 1020 and flat["coronal"].sum() == 184
    assert (flat["axial"] > 0.8 * flat["all"]).all()


def test_the_example_says_that_it_is_simulated_and_its_seed_decides_it(example):
    assert example.subject.str.startswith("simulated").all()
    pd.testing.assert_frame_equal(example, survey.simulated(0))
    assert not example.equals(survey.simulated(1))
    assert survey.counts(survey.simulated(1)).loc[("all", "")].equals(survey.counts(example).loc[("all", "")])


def test_the_histogram_counts_each_acquisition_once(example):
    for width in (0.1, 0.5, 0.7, 1.0):
        histogram = survey.thickness_histogram(example, width)
        assert histogram.groupby(["contrast", "dimension"]).acquisitions.sum().to_dict() == survey.PUBLISHED
    for width in (0, np.nan, "0.5"):
        with pytest.raises(ValueError, match=f"width_mm is {width!r}: accepted are numbers greater than 0"):
            survey.thickness_histogram(example, width)


def test_a_bin_holds_what_is_nearest_to_its_centre():
    table = pd.DataFrame(
        {"contrast": "T1w", "dimension": "2D", "thickness_mm": [2.74, 2.75, 3.0, 3.24, 3.25, np.nan]}
    )
    assert survey.thickness_histogram(table).set_index("thickness_mm").acquisitions.to_dict() == {
        2.5: 1,
        3.0: 3,
        3.5: 1,
    }


def test_the_papers_resolutions_are_marked(example):
    found = survey.resolutions(example)
    marked = {(row.thickness_mm, row.gap_mm) for row in found.itertuples() if row.studied}
    assert marked and marked <= {(each.thickness_mm, each.gap_mm) for each in RESOLUTIONS}
    assert found.acquisitions.sum() == ((example.dimension == "2D") & (example.gap_mm >= 0)).sum()
    assert (found[list(CONTRASTS)].sum(axis=1) == found.acquisitions).all()
    assert found.acquisitions.is_monotonic_decreasing


def test_unfit_acquisitions_of_the_example_are_all_two_dimensional_and_a_hundredth(example):
    assert len(survey.unfit(example)) == 11404 // 100
    assert set(example.dimension[example.unfit != ""]) == {"2D"}


def test_figure_1_draws_the_counts(example):
    histogram = survey.thickness_histogram(example)
    fig, axes, drawn = protocol_figures.figure_1(histogram, "a simulated collection")
    for ax, contrast in zip(axes, CONTRASTS, strict=True):
        heights = sum(patch.get_height() for patch in ax.patches)
        assert heights == (example.contrast == contrast).sum()
        assert contrast in ax.get_title() and "(mm)" in ax.get_xlabel()
    assert "simulated" in fig.get_suptitle()
    pd.testing.assert_frame_equal(drawn, histogram)
    matplotlib.pyplot.close(fig)
