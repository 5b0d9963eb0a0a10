"""How the slices of an image of one's own were acquired: from its sidecar, its header, its spectrum."""

import numpy as np
import pytest
from scipy import ndimage

from helpers import linear, volumes
from helpers.acquisition import degradation
from helpers.haca3 import Acquisition
from helpers.protocol import reading
from helpers.study import Resolution

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def head(shape=(96, 110, 104)):
    """A round thing with structure of all sizes, in the dark; 1 mm."""
    rng = np.random.default_rng(0)
    squares = np.stack(np.meshgrid(*(np.linspace(-1.15, 1.15, n) ** 2 for n in shape), indexing="ij"))
    texture = sum(ndimage.gaussian_filter(rng.standard_normal(shape), s) * s**1.5 for s in (0.5, 1, 2, 4))
    return np.where(squares.sum(axis=0) < 1, 100 + 20 * texture, 0).clip(0).astype(np.float32)


def stack(folder, orientation, resolution, sidecar=None):
    path = folder / "sub-1_T2w.nii.gz"
    slices = degradation.degrade(head((108, 120, 130)), AFFINE, orientation, resolution)
    volumes.write(path, *slices, sidecar)
    return path


@pytest.mark.parametrize("orientation", ["axial", "coronal"])
def test_a_stack_is_what_its_sidecar_says(tmp_path, orientation):
    said = {"MRAcquisitionType": "2D", "SliceThickness": 5, "SpacingBetweenSlices": 6.5}
    found = reading.slices_of(stack(tmp_path, orientation, Resolution(5, 1.5), said))
    assert found == (orientation, Resolution(5, 1.5))
    Acquisition(*found)


def test_without_a_sidecar_slices_are_as_thick_as_they_lie_apart(tmp_path):
    assert reading.slices_of(stack(tmp_path, "sagittal", Resolution(4, 1))) == ("sagittal", Resolution(5, 0))


def test_a_3d_image_has_no_slices_unless_its_spectrum_knows_better(tmp_path):
    path = tmp_path / "sub-1_FLAIR.nii.gz"
    sharp = head()
    volumes.write(path, sharp, AFFINE)
    assert reading.slices_of(path) is None
    back = degradation.there_and_back(sharp.shape[1], Resolution(5, 0))
    volumes.write(path, linear.along_axis(back, sharp, 1).clip(0), AFFINE)
    orientation, resolution = reading.slices_of(path)
    assert orientation == "coronal" and resolution.gap_mm == 0
    assert resolution.thickness_mm == pytest.approx(5, abs=1.5)


def test_a_geometry_that_is_missing_is_one_line_that_names_the_file(tmp_path):
    said = {"MRAcquisitionType": "2D", "SliceThickness": 3, "SpacingBetweenSlices": 3}
    path = stack(tmp_path, "axial", Resolution(5, 1.5), said)
    with pytest.raises(ValueError, match="sub-1_T2w.nii.gz: of its slices the geometry is missing") as error:
        reading.slices_of(path)
    assert "accepted" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_sidecar_of_somebody_else_is_read_or_refused_and_never_replaced_by_a_guess(tmp_path, start):
    path = stack(tmp_path, "axial", Resolution(5, 1.5))
    said = b'{"MRAcquisitionType": "2D", "SliceThickness": 5, "SpacingBetweenSlices": 6.5}'
    volumes.sidecar_path(path).write_bytes(start + said)
    assert reading.slices_of(path) == ("axial", Resolution(5, 1.5))
    for content, reason in (
        (said[:-1], "not a JSON object"),
        (said.decode().encode("utf-16"), "not a JSON object"),
        (b'{"SliceThickness": 5, "SliceThickness": 4}', "SliceThickness is there twice"),
        (b'{"ImageOrientationPatientDICOM": "axial"}', "accepted are six numbers"),
        (b'{"ImageOrientationPatientDICOM": [0, 1, 0, 0, 0, -1]}', "sagittal in the sidecar's cosines"),
    ):
        volumes.sidecar_path(path).write_bytes(content)
        with pytest.raises(ValueError, match=reason) as error:
            reading.slices_of(path)
        assert str(tmp_path) in str(error.value) and "accepted" in str(error.value)
    volumes.sidecar_path(path).unlink()
    volumes.sidecar_path(path).symlink_to("nowhere")
    with pytest.raises(ValueError, match="a link to nothing: accepted is a JSON object, or none at all"):
        reading.slices_of(path)
