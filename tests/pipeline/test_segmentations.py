"""Segmentations and downstream measures of a study, by files: with an identity for a harmonizer."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from helpers import grid, volumes
from helpers.analysis import downstream
from helpers.pipeline import cache, harmonization, models, scoring, segmentations, steps
from helpers.study import CONTRASTS, GROUND_TRUTH, Resolution
from helpers.study.file import Study
from helpers.study.subjects import SimulatedSubject

COARSE = Resolution(5, 1.5)


@pytest.fixture
def labelled(tmp_path):
    """A reference of four lesions and its sidecar; what another segmentation made of them."""
    reference = np.full((192, 224, 192), downstream.WHITE, np.uint8)
    reference[..., :60] = downstream.GREY
    other = reference.copy()
    for n, side in enumerate((3, 3, 6, 12)):
        place = (slice(40, 40 + side), slice(20 + 40 * n, 20 + 40 * n + side), slice(90, 90 + side))
        reference[place] = downstream.LESION
        if n:
            other[place] = downstream.LESION
    other[..., 54:60] = downstream.WHITE
    paths = []
    for name, labels in (("reference", reference), ("other", other)):
        paths.append(tmp_path / f"{name}_dseg.nii.gz")
        volumes.write(paths[-1], labels, grid.AFFINE)
    return paths


def test_what_one_segmentation_says_against_another(labelled):
    rows = pd.DataFrame(segmentations.measures(Study(slice_step=1), *labelled)).set_index("measure")
    assert rows.error_pct["grey_ml"] == pytest.approx(-10)
    assert (rows.value["missed_small"], rows.expected["missed_small"]) == (1, 2)
    assert rows.error_pct["missed_small"] == 50
    assert rows.error_pct["missed_medium"] == rows.error_pct["missed_large"] == 0
    assert rows.value["false_lesions"] == 0
    assert rows.error_pct["lesion_ml"] == pytest.approx(-100 * 27 / (27 + 27 + 216 + 1728))
    assert rows.contrast["grey_ml"] == "T1w" and rows.contrast["missed_small"] == "FLAIR"
    assert np.isnan(rows.error_pct["ventricles_ml"])  # There are none to be wrong about.


@pytest.mark.slow
def test_with_an_identity_a_preview_measures_what_thick_slices_do(tmp_path, monkeypatch):
    """One subject through every stage, every 23rd slice; experiment 3 has the tissues of its own T1w."""

    class Same:
        device = "cpu"

        def harmonize_all(self, cases, targets, **settings):
            for case, images in cases.items():
                given = {name: images[name] for name in targets}
                weights = {name: {"axial": np.full((192, len(CONTRASTS)), 1 / 3)} for name in targets}
                whole = {name: {"axial": image} for name, image in given.items()}
                result = SimpleNamespace(images=given, attention=weights, unfused=whole, sources=CONTRASTS)
                yield case, result

    monkeypatch.setattr(models, "harmonizer", lambda plan: Same())
    monkeypatch.setattr(models, "checkpoint_hash", lambda path: "identity")
    monkeypatch.setattr(harmonization, "targets", lambda plan: dict.fromkeys(CONTRASTS))
    monkeypatch.setattr(harmonization, "_encoding", lambda plan, *source: steps.source_volume(plan, *source))
    plan = Study(
        subjects=[1],
        experiments=["1a", "3"],
        resolutions=[COARSE],
        slice_step=23,
        downstream=True,
        output_dir=str(tmp_path),
    )
    table = scoring.all_downstream(plan)
    assert set(table.arm) == {"harmonized", "input", "ceiling"}
    assert set(table.reference) == {"3D", "exact"}
    assert not table.measure.str.startswith("missed").any()
    exact = table.query("experiment == '3D' and reference == 'exact' and arm == 'input'")
    assert abs(exact.set_index("measure").error_pct["grey_ml"]) < 10
    against = table.query("reference == '3D' and measure == 'grey_ml'").set_index(["experiment", "arm"])
    assert against.error_pct[GROUND_TRUTH, "ceiling"] == 0
    # The same tissues where neither has a lesion: lesions come from the FLAIR, and replace any tissue.
    labels = []
    for what in ((GROUND_TRUTH, None), ("3", COARSE)):
        row = (plan, SimulatedSubject(1), *what)
        images = segmentations.arms(*row)["harmonized"]
        labels.append(cache.read_volume(segmentations.segmented(*row, "harmonized", images))[0])
    then, now = labels
    lesions = (then == downstream.LESION) | (now == downstream.LESION)
    assert (then == now)[~lesions].all() and not (then == now).all()
    assert abs(against.error_pct["3", "harmonized"]) < 100 * lesions.sum() / (then == downstream.GREY).sum()
    assert abs(against.error_pct["1a", "input"]) > 0.5
    path = tmp_path / "tables" / "downstream.csv"
    before = path.read_bytes()
    scoring.all_downstream(plan)
    assert path.read_bytes() == before
