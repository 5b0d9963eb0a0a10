"""The stages on the real pipeline. Where the network does not matter its place is taken by one that changes
nothing."""

import dataclasses
import hashlib
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from helpers import grid, layout, registration, super_resolution, volumes
from helpers.acquisition import degradation
from helpers.analysis import judgement
from helpers.cohort import origins
from helpers.haca3 import Acquisition
from helpers.pipeline import cache, finished, folders, harmonization, models, participants, scoring, steps
from helpers.study import ARMS, CONTRASTS, GROUND_TRUTH, ORIENTATIONS, REMEDIES, Resolution
from helpers.study.file import Study
from helpers.study.subjects import SimulatedSubject
from helpers.volumes.files import write_bytes

AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
FIRST = SimulatedSubject(1)
FINE, COARSE = Resolution(3, 0), Resolution(5, 1.5)
# Of a mean over some million voxels in double precision, whatever the order in which they are added up.
ROUNDING = 1e-9


def digest(path):
    """Stands for the bytes of a file: pytest would spend hours on the difference of two volumes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Identity:
    """A harmonizer that returns its sources, each for the target of its own contrast."""

    device = "cpu"

    def harmonize(self, images, targets, orientations, details, **settings):
        assert details
        own = np.eye(len(images))
        attention = {
            name: {
                plane: np.tile(own[number], (images[name].shape[AXIS[plane]], 1)) for plane in orientations
            }
            for number, name in enumerate(images)
        }
        unfused = {name: dict.fromkeys(orientations, image) for name, image in images.items()}
        return SimpleNamespace(
            images=dict(images), sources=tuple(images), attention=attention, unfused=unfused
        )

    def harmonize_all(self, cases, targets, geometries, **settings):
        for name, images in cases.items():
            settings |= {"geometry": geometries[name]} if name in geometries else {}
            yield name, self.harmonize(images, targets, **settings)


class Imputing(Identity):
    """The same, and for the target of a missing contrast the T1w."""

    def harmonize(self, images, targets, **settings):
        result = super().harmonize(images, targets, **settings)
        for each in (result.images, result.attention, result.unfused):
            each |= {name: each["T1w"] for name in targets if name not in images}
        return result


@pytest.fixture(scope="module")
def plan(results_dir, tmp_path_factory):
    """A study of the session's subject in a folder of its own, so that no identity is taken for a
    harmonization."""
    shared = Study(subjects=[1], output_dir=str(results_dir))
    folder = tmp_path_factory.mktemp("identity")
    for subject in (FIRST, origins.TARGET_SUBJECT):
        participants.cohort(shared, subject)
        shutil.copytree(results_dir / subject.name, folder / subject.name)
    return Study(subjects=[1], resolutions=[COARSE], output_dir=str(folder))


@pytest.fixture
def identity(monkeypatch):
    monkeypatch.setattr(models, "harmonizer", lambda plan: Identity())
    monkeypatch.setattr(models, "checkpoint_hash", lambda path: "identity")
    monkeypatch.setattr(harmonization, "targets", lambda plan: dict.fromkeys(CONTRASTS))
    monkeypatch.setattr(harmonization, "_encoding", lambda plan, *source: steps.source_volume(plan, *source))


@pytest.fixture
def scored(plan, identity):
    return {
        each: scoring.scores(plan, FIRST, each).set_index(["arm", "contrast", "region"])
        for each in ("1a", "3", "4", "5", GROUND_TRUTH)
    }


def test_with_an_identity_harmonizer_a_3d_source_is_perfect(scored):
    for experiment, contrast in (("3", "T1w"), ("4", "T1w"), ("5", "FLAIR")):
        for region in ("full", "brain"):
            row = scored[experiment].loc[("harmonized", contrast, region)]
            assert row.psnr_db == np.inf
            assert row.ssim_axial == 1


def test_with_an_identity_harmonizer_a_3d_source_helps_no_other_contrast(scored):
    for contrast in ("T2w", "FLAIR"):
        for column in ("psnr_db", "ssim_axial"):
            alone = scored["1a"].loc[("harmonized", contrast, "brain")][column]
            assert scored["3"].loc[("harmonized", contrast, "brain")][column] == pytest.approx(
                alone, rel=ROUNDING
            )


def test_with_an_identity_harmonizer_harmonized_and_input_arm_are_one(scored):
    for table in scored.values():
        for (arm, contrast, region), row in table.iterrows():
            if arm == "harmonized":
                assert row.psnr_db == pytest.approx(
                    table.loc[("input", contrast, region)].psnr_db, rel=ROUNDING
                )


def test_the_ground_truth_against_itself_is_perfect(scored):
    ceiling = scored[GROUND_TRUTH]
    assert (ceiling.psnr_db == np.inf).all()
    assert (ceiling.ssim_axial == 1).all()
    assert set(ceiling.index.get_level_values("arm")) == {"ceiling"}


def test_a_2d_source_is_not_perfect_and_a_preview_claims_no_3d_ssim(scored):
    rows = scored["1a"]
    assert np.isfinite(rows.psnr_db).all()
    assert rows.ssim.isna().all()
    assert rows.ssim_axial.between(0, 1, inclusive="neither").all()


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_without_harmonizer_quality_falls_with_slice_separation(plan, contrast):
    from helpers.analysis import metrics

    reference, _ = volumes.read(participants.cohort(plan, FIRST)[contrast])
    brain = volumes.read(participants.cohort(plan, FIRST)["mask"])[0] > 0
    ladder = [Resolution(3, 0), Resolution(4, 0), Resolution(5, 0), Resolution(5, 1), COARSE]
    images = [steps.registered_volume(plan, FIRST, contrast, "axial", each) for each in ladder]
    psnr = [metrics.psnr(reference, image, metrics.data_range(reference), brain) for image in images]
    assert (np.diff(psnr) < 0).all(), psnr


def test_with_an_identity_harmonizer_experiments_3_and_4_agree_on_t1w(scored):
    for region in ("full", "brain"):
        for column in ("psnr_db", "ssim_axial"):
            three, four = (scored[each].loc[("harmonized", "T1w", region)][column] for each in ("3", "4"))
            assert three == pytest.approx(four, rel=ROUNDING)


@pytest.mark.slow
def test_without_harmonizer_psnr_and_ssim_fall_with_separation_in_the_mean_of_1a_to_1c(plan, identity):
    ladder = ["3||0", "4||0", "5||0", "5||1", "5||1.5"]
    several = Study(**{**plan.literals(), "resolutions": ladder})
    rows = pd.concat([scoring.scores(several, FIRST, experiment) for experiment in ("1a", "1b", "1c")])
    means = (
        rows[(rows.arm == "input") & (rows.region == "brain")]
        .groupby("separation_mm")[["psnr_db", "ssim_axial"]]
        .mean()
    )
    assert list(means.index) == [3, 4, 5, 6, 6.5]
    assert (np.diff(means, axis=0) < 0).all(), means


@pytest.mark.slow
def test_the_known_transform_is_at_least_as_good_as_the_estimated_one(plan):
    known, rigid = (
        [input_psnr(plan, contrast, transform) for contrast in CONTRASTS] for transform in ("known", "rigid")
    )
    assert np.mean(known) >= np.mean(rigid) - 0.1
    estimated = Study(**{**plan.literals(), "experiments": ["1a"], "transform": "rigid"})
    errors = scoring.all_registrations(estimated)
    assert len(errors) == 3
    assert errors.registration_error_mm.between(1e-4, 0.5).all()
    assert set(errors["transform"]) == {"rigid"}


def input_psnr(plan, contrast, transform):
    path = steps.registered(plan, FIRST, contrast, "axial", COARSE, transform)
    return scoring.input_scores(plan, FIRST, contrast, path).set_index("region").psnr_db["brain"]


def test_the_attention_is_kept_beside_each_image_and_becomes_a_table(plan, identity):
    found = scoring.attention(plan, FIRST, "3")
    assert len(found) == 3 * 3
    assert set(found.plane) == {"axial"}
    # The identity looks at the source of its own contrast alone.
    np.testing.assert_array_equal(found.weight, (found.source == found.target).astype(float))
    assert (found.weight_sd == 0).all()
    assert found[found.source == "T1w"].orientation.eq("3D").all()
    assert scoring.attention(plan, FIRST, GROUND_TRUTH).resolution.eq("3D").all()


@pytest.fixture
def quickly_taught(monkeypatch):
    monkeypatch.setattr(steps, "RESOLVER_CHANNELS", 2)
    return {"remedies": REMEDIES, "teaching_steps": 1}


def test_only_where_sources_differ_the_harmonizer_learns_how_they_were_acquired(plan, identity, monkeypatch):
    given = []

    class Curious(Identity):
        def harmonize(self, images, targets, geometry=None, **settings):
            given.append(geometry)
            return super().harmonize(images, targets, **settings)

    monkeypatch.setattr(models, "harmonizer", lambda plan: Curious())
    remedied = dataclasses.replace(plan, remedies=["fusion"])
    aware = "harmonized, resolution-aware"
    plain = harmonization.harmonized(plan, FIRST, "3", COARSE)
    given.clear()
    mixed = harmonization.harmonized(remedied, FIRST, "3", COARSE, arm=aware)
    stacks = dict.fromkeys(("T2w", "FLAIR"), Acquisition("axial", COARSE))
    assert given == [{"T1w": None, **stacks}]
    assert volumes.read_sidecar(mixed["T1w"])["Remedies"] == ["fusion"]
    assert not set(plain.values()) & set(mixed.values())
    # Where all sources are alike nothing is new, and what is there is taken.
    alike = harmonization.harmonized(plan, FIRST, "1a", COARSE)
    given.clear()
    assert harmonization.harmonized(remedied, FIRST, "1a", COARSE, arm=aware) == alike
    assert given == []


def test_the_arm_of_another_training_has_its_network_in_all_experiments(plan, identity, monkeypatch):
    asked = []
    monkeypatch.setattr(models, "harmonizer", lambda plan: asked.append(plan.weights) or Identity())
    monkeypatch.setattr(models, "checkpoint_hash", lambda path: path.name)
    trained = dataclasses.replace(plan, remedies=["training"], resolution_weights="other.pt")
    plain = harmonization.harmonized(trained, FIRST, "1a", COARSE)
    assert set(asked) == {trained.weights}
    asked.clear()
    images = harmonization.harmonized(trained, FIRST, "1a", COARSE, arm="harmonized, resolution-trained")
    assert set(asked) == {"other.pt"} and not set(plain.values()) & set(images.values())
    assert volumes.read_sidecar(images["T1w"])["Harmonization"]["weights_file"] == "other.pt"
    assert harmonization.harmonized(trained, FIRST, "1a", COARSE) == plain


def test_remedies_are_arms_of_the_same_table_and_leave_the_others_as_they_are(plan, identity, quickly_taught):
    columns = ["arm", "contrast", "region"]
    for experiment in ("1a", "3"):
        bare = scoring.scores(plan, FIRST, experiment)
        found = scoring.scores(dataclasses.replace(plan, **quickly_taught), FIRST, experiment)
        assert list(found) == list(bare)
        kept = found[found.arm.isin(bare.arm.unique())]
        pd.testing.assert_frame_equal(kept.reset_index(drop=True), bare)
        assert set(found.arm) == {*ARMS, "input", "super-resolved input"}
        psnr_db = found.set_index(columns).psnr_db.unstack("arm")
        # The identity returns its sources.
        for arm, source in (("harmonized", "input"), ("harmonized, super-resolved", "super-resolved input")):
            np.testing.assert_allclose(psnr_db[arm], psnr_db[source], rtol=ROUNDING)
        for arm, same in (
            ("harmonized, resolution-aware", "harmonized"),
            ("harmonized, both", "harmonized, super-resolved"),
        ):
            np.testing.assert_allclose(psnr_db[arm], psnr_db[same], rtol=ROUNDING)
    assert (psnr_db.loc["T1w"] == np.inf).all(axis=None)
    assert (psnr_db.loc["T2w", "super-resolved input"] != psnr_db.loc["T2w", "input"]).all()
    judgement.verdicts(found)


def test_a_resolver_is_taught_by_stacks_of_the_study_once_for_all_subjects(plan, quickly_taught, monkeypatch):
    taught = []
    monkeypatch.setattr(
        super_resolution,
        "train",
        lambda stacks, *how, folder, train=super_resolution.train, **settings: (
            taught.append(len(stacks)) or train(stacks[:1], *how, folder=folder, **settings)
        ),
    )
    fine = dataclasses.replace(plan, resolutions=[FINE], **quickly_taught)
    path = steps.resolver(fine, FINE)
    others = dataclasses.replace(fine, experiments=["5"], subjects=[2], taught_on=[1])
    assert steps.resolver(others, FINE) == path
    assert taught == [9]
    assert {entry.name for entry in path.parent.glob("3skip0*")} == {"3skip0.pt", "3skip0.pt.json"}
    steps.resolver(dataclasses.replace(fine, seed=fine.seed + 1), FINE)
    assert taught == [9, 9]


def test_a_super_resolved_stack_lies_where_its_head_lies_and_gives_back_its_slices(plan, quickly_taught):
    several = dataclasses.replace(plan, **quickly_taught)
    where = (several, FIRST, "T1w", "coronal", COARSE)
    whole, affine = volumes.read(steps.super_resolved(*where))
    assert whole.shape == grid.SHAPE
    np.testing.assert_allclose(affine, grid.AFFINE, atol=1e-6)
    stack, _ = volumes.read(steps.degraded(*where))
    again, _ = degradation.degrade(whole, affine, "coronal", COARSE)
    assert np.abs(again - stack).max() < 1e-3 * stack.max()
    # In a preview the file holds the visited slices only; the whole is there when it is needed.
    np.testing.assert_allclose(steps.registered_volume(*where, resolved=True), whole, atol=1e-3 * whole.max())


@pytest.mark.parametrize("label", ["1||0", "20||10"])
def test_stacks_that_cannot_be_super_resolved_are_refused_before_any_is_made(plan, label):
    remedied = dataclasses.replace(plan, resolutions=["5||1.5", label], remedies=["super-resolution"])
    with pytest.raises(ValueError, match=re.escape(f"resolutions has {label}")) as error:
        steps.check_remedies(remedied)
    assert "accepted" in str(error.value) and "\n" not in str(error.value)
    steps.check_remedies(dataclasses.replace(remedied, remedies=["fusion"]))


def test_a_dropped_contrast_of_a_simulated_subject_is_harmonized_and_not_given(plan, identity, monkeypatch):
    monkeypatch.setattr(models, "harmonizer", lambda plan: Imputing())
    complete = Study(**{**plan.literals(), "experiments": ["1b", "5"]})
    before = {experiment: scoring.scores(complete, FIRST, experiment) for experiment in ("1b", "5")}
    keys = {
        contrast: volumes.read_sidecar(path)["Key"]
        for contrast, path in harmonization.harmonized(complete, FIRST, "1b", COARSE).items()
    }
    some = Study(**{**complete.literals(), "dropped": ["T2w"]})
    for experiment in ("1b", "5"):
        columns = ["arm", "contrast", "region"]
        known, found = (
            table.set_index(columns)
            for table in (before[experiment], scoring.scores(some, FIRST, experiment))
        )
        assert set(known.index) - set(found.index) == {
            ("input", "T2w", region) for region in ("full", "brain")
        }
        imputed, kept = (
            found.psnr_db["harmonized", "T2w", "brain"],
            known.psnr_db["harmonized", "FLAIR", "brain"],
        )
        assert imputed == pytest.approx(found.psnr_db["harmonized", "T1w", "brain"], rel=ROUNDING)
        assert found.psnr_db["harmonized", "FLAIR", "brain"] == pytest.approx(kept, rel=ROUNDING)
        assert "dropped" not in known
        assert set(found.dropped) == {"T2w"}
    assert list(scoring.attention(some, FIRST, "5").source.unique()) == ["T1w", "FLAIR"]
    assert set(scoring.frequencies(some, FIRST, "1b").contrast) == {"T1w", "FLAIR"}
    assert set(scoring.all_registrations(some).contrast) == {"T1w", "FLAIR"}
    # What was made with all three is not taken for what was made without one, nor the other way round.
    now = {
        contrast: volumes.read_sidecar(path)["Key"]
        for contrast, path in harmonization.harmonized(some, FIRST, "1b", COARSE).items()
    }
    assert all(now[contrast] != keys[contrast] for contrast in CONTRASTS)
    again = harmonization.harmonized(complete, FIRST, "1b", COARSE)
    assert {contrast: volumes.read_sidecar(path)["Key"] for contrast, path in again.items()} == keys


def test_weights_of_attention_are_means_over_slices_by_the_area_of_the_brain(plan, monkeypatch):
    class Uneven(Identity):
        def harmonize(self, images, targets, **settings):
            result = super().harmonize(images, targets, **settings)
            for stack in result.attention.values():
                # One source before slice 96 of the axis, another after; nothing was computed at the rim.
                stack["axial"][:] = np.nan
                stack["axial"][40:96], stack["axial"][96:150] = (1, 0, 0), (0, 0, 1)
            return result

    monkeypatch.setattr(models, "harmonizer", lambda plan: Uneven())
    monkeypatch.setattr(models, "checkpoint_hash", lambda path: "uneven")
    monkeypatch.setattr(harmonization, "targets", lambda plan: dict.fromkeys(CONTRASTS))
    monkeypatch.setattr(harmonization, "_encoding", lambda plan, *source: steps.source_volume(plan, *source))
    image = steps.registered_volume(plan, FIRST, "T2w", "axial", COARSE)
    below, above = (np.count_nonzero(image[:, :, part]) for part in (slice(40, 96), slice(96, 150)))
    found = scoring.attention(plan, FIRST, "1a")
    found = found[found.target == "T2w"].set_index("source").weight
    np.testing.assert_allclose(
        found[["T1w", "T2w", "FLAIR"]], [below / (below + above), 0, above / (below + above)], atol=1e-6
    )


def test_frequencies_are_lost_by_the_stack_and_not_by_an_identity(plan, identity):
    curves = scoring.frequencies(plan, FIRST, "1b")
    found = scoring.cutoffs(curves)
    assert len(found) == 3 * 2
    assert set(found.arm) == {"input", "harmonized"}
    # Slices 6.5 mm apart hold frequencies up to 0.077 cycles/mm.
    assert found.cutoff_per_mm.between(0.06, 0.11).all()
    wide = found.pivot(index="contrast", columns="arm", values="cutoff_per_mm")
    np.testing.assert_allclose(wide.input, wide.harmonized)
    # An axial preview skips the direction in which axial stacks are coarse, and a 3D source has none.
    empty = scoring.frequencies(plan, FIRST, "1a")
    assert empty.empty and list(empty.columns) == list(curves.columns)
    assert scoring.cutoffs(empty).empty
    assert scoring.cutoffs(scoring.all_frequencies(Study(**{**plan.literals(), "experiments": ["3"]}))).empty
    assert set(scoring.frequencies(plan, FIRST, "4").contrast) == {"T2w", "FLAIR"}


def test_tables_are_gathered_beside_the_scores_and_again_with_the_same_bytes(plan, identity):
    study = Study(**{**plan.literals(), "experiments": ["1b", "3"]})
    wanted = {
        "scores": scoring.all_scores,
        "attention": scoring.all_attention,
        "frequencies": scoring.all_frequencies,
        "registrations": scoring.all_registrations,
    }
    found = {name: make(study) for name, make in wanted.items()}
    paths = [folders.root(study) / "tables" / f"{name}.csv" for name in wanted]
    before = [digest(path) for path in paths]
    for make in wanted.values():
        make(study)
    assert [digest(path) for path in paths] == before
    assert len(found["attention"]) == 9 * 3
    assert len(found["registrations"]) == len(study.acquisitions())
    assert (found["registrations"].registration_error_mm < 1e-6).all()
    assert set(found["frequencies"].experiment) == {"1b"}
    judgement.verdicts(found["scores"], found["attention"], scoring.cutoffs(found["frequencies"]))


def test_studies_of_a_ladder_are_put_one_below_the_other_and_a_missing_one_is_named(plan, tmp_path):
    for transform in ("known", "rigid"):
        table = pd.DataFrame({"experiment": ["2"], "resolution": ["3||0"], "transform": [transform]})
        write_bytes(tmp_path / transform / "tables" / "scores.csv", table.to_csv(index=False).encode())
    found = finished.other_studies([tmp_path / "known", tmp_path / "rigid"])
    assert list(found["transform"]) == ["known", "rigid"]
    assert list(found.experiment) == ["2", "2"]
    assert finished.other_studies([]).empty
    with pytest.raises(FileNotFoundError, match="nowhere/tables/scores.csv: no such table"):
        finished.other_studies([tmp_path / "nowhere"])


# What each kind of file belongs to: the stage that computes it, whose version and libraries its key holds.
STAGE_OF = {
    "desc-preproc": "cohort",
    "desc-brain": "cohort",
    "desc-degraded": "degradation",
    "desc-registered": "registration",
    "desc-harmonized": "harmonization",
    "_scores.csv": "scores",
    "tables/inputs": "scores",
    "_frequencies.csv": "scores",
}


def keys_of(plan, monkeypatch):
    """File -> the key that it is asked for under, of everything that the scores and frequencies of 1a rest
    on. Nothing is computed."""
    keys = {}
    with monkeypatch.context() as patch:
        patch.setattr(cache, "is_done", lambda path, key: bool(keys.setdefault(path, key)))
        scoring.scores(plan, FIRST, "1a")
        scoring.frequencies(plan, FIRST, "1a")
    return keys


@pytest.mark.parametrize(
    "raised, libraries",
    [
        (stage, ())
        for stage in (
            "cohort",
            "preparation",
            "degradation",
            "registration",
            "harmonization",
            "scores",
            "analysis",
        )
    ]
    + [
        ((), (name,))
        for name in ("antspyx", "torch", "sigpy", "scipy", "numpy", "scikit-image", "nibabel", "dask")
    ],
)
def test_a_raised_version_and_another_library_run_exactly_what_depends_on_them(
    scored, plan, monkeypatch, raised, libraries
):
    scoring.frequencies(plan, FIRST, "1a")
    before = keys_of(plan, monkeypatch)
    if raised:
        stage = cache.STAGES[raised]
        monkeypatch.setitem(cache.STAGES, raised, dataclasses.replace(stage, version=stage.version + 1))
    monkeypatch.setattr(
        cache,
        "library_version",
        lambda name, known=cache.library_version: "0" if name in libraries else known(name),
    )
    after = keys_of(plan, monkeypatch)
    changed = {path for path in before if before[path] != after[path]}
    expected = {
        stage
        for stage in cache.STAGES
        if stage == raised or set(cache.STAGES[stage].libraries) & set(libraries)
    }
    stages = {path: next(stage for part, stage in STAGE_OF.items() if part in str(path)) for path in before}
    assert set(stages.values()) == {"cohort", "degradation", "registration", "harmonization", "scores"}
    assert changed == {path for path, stage in stages.items() if stage in expected}


def test_what_is_done_is_not_done_again(plan):
    path = steps.registered(plan, FIRST, "T1w", "axial", COARSE)
    before = {each: each.stat().st_mtime_ns for each in path.parent.iterdir()}
    assert steps.registered(plan, FIRST, "T1w", "axial", COARSE) == path
    assert {each: each.stat().st_mtime_ns for each in path.parent.iterdir()} == before


@pytest.mark.parametrize("damage", ["sidecar gone", "sidecar cut", "volume gone", "other key"])
def test_what_is_half_done_is_done_again_with_the_same_bytes(plan, damage):
    path = steps.registered(plan, FIRST, "T1w", "axial", COARSE)
    sidecar = volumes.sidecar_path(path)
    before, said = digest(path), sidecar.read_text()
    if damage == "sidecar gone":
        sidecar.unlink()
    elif damage == "sidecar cut":
        sidecar.write_text(said[:40])
    elif damage == "volume gone":
        path.unlink()
    else:
        sidecar.write_text(json.dumps({**json.loads(said), "Key": "another"}))
    steps.registered(plan, FIRST, "T1w", "axial", COARSE)
    assert (digest(path), sidecar.read_text()) == (before, said)


def test_of_several_images_only_the_one_that_is_missing_is_made(plan, identity):
    participants.person.cache_clear()  # The subject is simulated anew, as in another process.
    for paths, name in (
        (harmonization.harmonized(plan, FIRST, "1a", COARSE), "T2w"),
        (participants.cohort(plan, FIRST), "FLAIR"),
    ):
        before, times = digest(paths[name]), {path: path.stat().st_mtime_ns for path in paths.values()}
        volumes.sidecar_path(paths[name]).unlink()
        harmonization.harmonized(plan, FIRST, "1a", COARSE)
        assert digest(paths[name]) == before
        assert [path for path in paths.values() if path.stat().st_mtime_ns != times[path]] == [paths[name]]


def test_another_seed_is_another_key_and_the_known_transform_gives_the_same_image(plan):
    path = steps.registered(plan, FIRST, "T2w", "axial", COARSE)
    first, key = volumes.read(path)[0], volumes.read_sidecar(path)["Key"]
    other = Study(**{**plan.literals(), "seed": 5})
    steps.registered(other, FIRST, "T2w", "axial", COARSE)
    assert volumes.read_sidecar(path)["Key"] != key
    # Another motion, but known, so undone to rounding.
    np.testing.assert_allclose(volumes.read(path)[0], first, atol=1e-3 * first.max())


def test_a_preview_keeps_the_visited_slices_of_a_registered_stack_and_computes_the_whole_one_again(
    plan, tmp_path, monkeypatch
):
    for path in ("sub-sim01", "sub-sim11"):
        shutil.copytree(
            folders.folder(plan) / path, tmp_path / path, ignore=shutil.ignore_patterns("*acq-*", "*rec-*")
        )
    whole = dataclasses.replace(plan, slice_step=1, output_dir=str(tmp_path))
    expected, affine = volumes.read(steps.registered(whole, FIRST, "T1w", "axial", COARSE))
    np.testing.assert_array_equal(steps.registered_volume(plan, FIRST, "T1w", "axial", COARSE), expected)
    path = steps.registered(plan, FIRST, "T1w", "axial", COARSE)
    kept, kept_affine = volumes.read(path)
    some, some_affine = steps.visited(plan, expected, affine)
    np.testing.assert_array_equal(kept, some)
    np.testing.assert_array_equal(kept_affine, some_affine)
    assert steps.visited(plan, kept, kept_affine)[0] is kept
    # Between the slices two volumes may differ: those that depend on it know them apart.
    assert (
        volumes.read_sidecar(path)["WholeVolumeSha256"]
        == hashlib.sha256(np.ascontiguousarray(expected)).hexdigest()
    )
    # What ANTs estimates is costly, and kept whole.
    monkeypatch.setattr(registration, "estimate", lambda *how, **settings: np.eye(4))
    preview = dataclasses.replace(plan, output_dir=str(tmp_path))
    estimated = steps.registered(preview, FIRST, "T1w", "axial", COARSE, "rigid")
    assert volumes.geometry(estimated)[0] == (192, 224, 192)


def test_what_was_registered_for_other_slices_is_made_again(plan):
    first = steps.registered(plan, FIRST, "FLAIR", "axial", COARSE)
    shape = volumes.geometry(first)[0]
    other = dataclasses.replace(plan, slice_step=23)
    assert steps.registered(other, FIRST, "FLAIR", "axial", COARSE) == first
    assert (shape, volumes.geometry(first)[0]) == ((192, 224, 17), (192, 224, 8))


def test_experiments_that_share_a_source_encode_it_once(plan, monkeypatch):
    encoded = []

    class Counting(Identity):
        def encode(self, volume, orientations, slice_step):
            encoded.append(hashlib.sha256(np.ascontiguousarray(volume)).hexdigest())
            return volume

    monkeypatch.setattr(models, "harmonizer", lambda plan: Counting())
    monkeypatch.setattr(models, "checkpoint_hash", lambda path: "counting")
    monkeypatch.setattr(harmonization, "targets", lambda plan: dict.fromkeys(CONTRASTS))
    harmonization._encoded_slices.cache_clear()
    rows = ("1a", "2", "3", "5")
    for row in rows:
        harmonization.harmonized(plan, FIRST, row, COARSE)
    # Three axial stacks, two of other orientations in experiment 2, two 3D images.
    assert len(encoded) == len(set(encoded)) == 3 + 2 + 2
    harmonization._encoded_slices.cache_clear()


def test_experiments_that_are_harmonized_together_get_the_same_source_and_the_files_that_each_gets_alone(
    plan, identity, monkeypatch
):
    rows, taken = ("1a", "2", "5"), []

    class Watching(Identity):
        def harmonize_all(self, cases, targets, geometries, **settings):
            taken.append(cases)
            return super().harmonize_all(cases, targets, geometries, **settings)

    monkeypatch.setattr(models, "harmonizer", lambda plan: Watching())
    alone = {row: harmonization.harmonized(plan, FIRST, row, COARSE) for row in rows}
    before = {path: digest(path) for paths in alone.values() for path in paths.values()}
    alone["2"]["T2w"].unlink()
    for path in alone["5"].values():
        path.unlink()
    taken.clear()
    harmonization.harmonized_together(plan, FIRST, rows, COARSE)
    assert {path: digest(path) for path in before} == before
    second, fifth = taken[0].values()  # what was missing
    assert len(taken) == 1
    assert second["T1w"] is fifth["T1w"]


def test_a_stack_says_what_it_is(plan):
    sidecar = volumes.read_sidecar(steps.degraded(plan, FIRST, "T1w", "sagittal", COARSE))
    assert sidecar["SliceThickness"] == 5
    assert sidecar["SpacingBetweenSlices"] == 6.5
    assert sidecar["MRAcquisitionType"] == "2D"
    assert sidecar["Sources"] == [
        "bids::sub-sim01/anat/sub-sim01_space-MNI152NLin2009aSym_desc-preproc_T1w.nii.gz"
    ]
    assert "Semi-synthetic" in sidecar["Note"]


def test_a_preview_keeps_every_eleventh_slice_where_it_belongs(plan):
    volume = np.arange(192 * 224 * 192, dtype=np.float32).reshape(192, 224, 192)
    affine = np.array([[-1.0, 0, 0, 96], [0, -1, 0, 96], [0, 0, 1, -78], [0, 0, 0, 1]])
    some, some_affine = steps.visited(plan, volume, affine)
    assert some.shape == (192, 224, 17)
    np.testing.assert_array_equal(some[:, :, 3], volume[:, :, 5 + 33])
    np.testing.assert_allclose(some_affine @ [1, 2, 3, 1], affine @ [1, 2, 5 + 33, 1])


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt: no such checkpoint"):
        models.check_models(Study(weights=str(tmp_path / "nowhere.pt")))
    models.check_models(Study(remedies=["training"]))  # Its weights ship.
    with pytest.raises(FileNotFoundError, match="^resolution_weights is .*no such checkpoint"):
        nowhere = str(tmp_path / "nowhere.pt")
        models.check_models(Study(remedies=["training"], resolution_weights=nowhere))


@pytest.mark.slow
def test_with_noise_of_its_own_no_arm_is_better_than_the_noise_allows(results_dir, tmp_path):
    for subject in (FIRST, origins.TARGET_SUBJECT):
        participants.cohort(Study(output_dir=str(results_dir)), subject)
        shutil.copytree(results_dir / subject.name, tmp_path / subject.name)
    plan = Study(
        subjects=[1],
        experiments=["1a", "3"],
        resolutions=[FINE],
        anatomy="independent",
        output_dir=str(tmp_path),
    )
    rows = scoring.all_scores(plan)
    means = (
        rows[(rows.region == "brain") & (rows.arm != "input")].groupby(["arm", "experiment"]).psnr_db.mean()
    )
    assert means["ceiling", GROUND_TRUTH] > means["harmonized"].max()


@pytest.mark.slow
def test_a_whole_volume_in_three_planes_fused_nears_the_exact_truth(results_dir):
    from helpers import haca3
    from helpers.analysis import metrics
    from helpers.cohort import phantom, scanners

    plan = Study(subjects=[1], slice_step=1, output_dir=str(results_dir))
    sources = {
        contrast: volumes.read(path)[0]
        for contrast, path in steps.source_images(plan, FIRST, "3", FINE).items()
    }
    target = volumes.read(participants.cohort(plan, origins.TARGET_SUBJECT)["T1w"])[0]
    harmonizer = haca3.load(layout.ROOT / plan.weights)
    result = harmonizer.harmonize(sources, {"T1w": target}, orientations=ORIENTATIONS, details=True)
    image, planes = result.images["T1w"], result.unfused["T1w"]
    assert image.shape == (192, 224, 192)
    assert np.isfinite(image).all()
    scaled = np.stack([plane / np.percentile(plane, 95) for plane in planes.values()])
    np.testing.assert_allclose(
        image / np.percentile(target, 95), np.median(scaled, axis=0).clip(0, 5), atol=1e-3
    )
    # What no real cohort has: the same subject on the target scanner, without noise.
    subject = phantom.subject(1)
    truth = phantom.render(subject, scanners.scanner("target"), "T1w")
    constant = np.where(subject.brain, truth[subject.brain].mean(), 0)
    peak = metrics.data_range(truth)
    assert metrics.psnr(truth, image, peak, subject.brain) > metrics.psnr(
        truth, constant, peak, subject.brain
    )
    assert np.corrcoef(truth[subject.brain], image[subject.brain])[0, 1] > 0.7
