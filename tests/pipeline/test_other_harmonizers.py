"""Other harmonizers than HACA3 on the real pipeline, with a small round brain in place of a subject."""

import sys

import numpy as np
import pandas as pd
import pytest

from helpers import grid, layout, volumes
from helpers.analysis import judgement
from helpers.harmonizers import protocol
from helpers.pipeline import finished, folders, harmonization, models, participants, scoring, steps
from helpers.runner import graph, status
from helpers.study import CONTRASTS, EXPERIMENTS, GROUND_TRUTH, ORIENTATIONS, Resolution
from helpers.study.file import Study
from helpers.study.subjects import OwnSubject, SimulatedSubject

FIRST = SimulatedSubject(1)
COARSE = Resolution(5, 1.5)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Paths of three images and of a brain mask, for a subject and for the target."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    places = [slice(n // 2 - 24, n // 2 + 24) for n in grid.SHAPE]
    x = np.stack(np.meshgrid(*[np.arange(-23.5, 24)] * 3, indexing="ij"))
    inside = (x**2).sum(axis=0) < 20**2
    people = {}
    for subject in ("subject", "target"):
        people[subject] = {}
        for number, what in enumerate((*CONTRASTS, "mask")):
            volume = np.zeros(grid.SHAPE, np.uint8 if what == "mask" else np.float32)
            waves = 100 + 30 * np.sin(x / (3 + number)).sum(axis=0) + draw.normal(0, 2, inside.shape)
            volume[tuple(places)] = (
                inside if what == "mask" else inside * (waves + (subject == "target") * 50)
            )
            people[subject][what] = layout.image(folder, OwnSubject(subject), what, desc="preproc")
            volumes.write(people[subject][what], volume, grid.AFFINE)
    return people


@pytest.fixture
def study(images, tmp_path, monkeypatch):
    """A study of that subject, with any harmonizer."""
    monkeypatch.setattr(
        participants, "cohort", lambda plan, subject: images["subject" if subject == FIRST else "target"]
    )

    def make(harmonizer, **changes):
        base = {"subjects": [1], "resolutions": [COARSE], "slice_step": 37, "experiments": ["1a", "3"]}
        return Study(harmonizer=harmonizer, output_dir=str(tmp_path / "results"), **{**base, **changes})

    return make


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module with a harmonizer, whose method `harmonize` has the given lines."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(*lines, before=""):
        body = "".join(f"        {line}\n" for line in lines)
        (tmp_path / "own_harmonizer.py").write_text(
            f"import numpy as np\nclass Own:\n{before}    def harmonize(self, sources, targets):\n{body}"
        )
        sys.modules.pop("own_harmonizer", None)
        protocol.load.cache_clear()
        protocol._module.cache_clear()
        return f"{tmp_path}/own_harmonizer:Own"

    yield write
    sys.modules.pop("own_harmonizer", None)


def test_without_a_harmonizer_the_harmonized_arm_is_the_input(study):
    plan = study("none")
    rows = scoring.scores(plan, FIRST, "3").query("region == 'brain'").set_index(["arm", "contrast"])
    for contrast in CONTRASTS:
        # Not the SSIM: at the rim of the brain its window sees the background, which was taken away.
        assert rows.psnr_db["harmonized", contrast] == pytest.approx(rows.psnr_db["input", contrast])
    assert set(rows.harmonizer) == {"none"}
    assert set(rows.anatomy) == set(rows["mask"]) == {"not used"}


def test_what_haca3_alone_has_is_left_out_in_words_and_not_as_missing_numbers(study):
    plan = study("none")
    scores = scoring.all_scores(plan)
    assert scores[[column for column in scores if not column.startswith("ssim")]].notna().all(axis=None)
    assert scoring.all_attention(plan).empty
    assert not (folders.root(plan) / "tables" / "attention.csv").exists()
    verdicts, _ = judgement.verdicts(scores, scoring.all_attention(plan))
    assert verdicts.set_index("claim").reason["C17"] == "there is no attention"
    sidecar = volumes.read_sidecar(harmonization.harmonized(plan, FIRST, "3", COARSE)["T1w"])
    assert "Attention" not in sidecar
    assert sidecar["Harmonization"] == {"harmonizer": {"name": "none"}, "slice_step": 37}


def test_a_sidecar_names_the_remedies_of_its_sources(study, images, monkeypatch):
    # In place of super-resolved stacks: none is taught here.
    monkeypatch.setattr(
        steps, "source_file", lambda plan, subject, source: images["subject"][source.contrast]
    )
    monkeypatch.setattr(
        steps,
        "source_volume",
        lambda plan, subject, source: volumes.read(images["subject"][source.contrast])[0],
    )
    plan = study("none", remedies=["super-resolution"])
    for arm, remedies in (("harmonized", None), ("harmonized, super-resolved", ["super-resolution"])):
        sidecar = volumes.read_sidecar(harmonization.harmonized(plan, FIRST, "1a", COARSE, arm=arm)["T1w"])
        assert sidecar.get("Remedies") == remedies


def test_the_ceiling_of_a_harmonizer_that_does_the_same_twice_is_infinite(study):
    ceiling = scoring.scores(study("histogram"), FIRST, GROUND_TRUTH)
    assert set(ceiling.arm) == {"ceiling"}
    assert np.isinf(ceiling.psnr_db).all()


def test_the_ceiling_of_a_harmonizer_of_chance_is_finite(study, own):
    noise = "return {c: s + (s != 0) * np.random.normal(0, 1, s.shape) for c, s in sources.items()}"
    ceiling = scoring.scores(study(own(noise)), FIRST, GROUND_TRUTH)
    assert np.isfinite(ceiling.psnr_db).all()


def test_a_whole_volume_has_no_plane_of_reconstruction(study):
    assert set(scoring._how(study("none", slice_step=1))["reconstruction"].split("+")) == set(ORIENTATIONS)
    assert scoring._how(study("none"))["reconstruction"] == "axial"


def test_sources_and_targets_are_brains_that_cannot_be_changed(study, own, images):
    plan = study(
        own(
            "assert set(sources) == set(targets) == {'T1w', 'T2w', 'FLAIR'}",
            "for image in (*sources.values(), *targets.values()):",
            "    assert image.dtype == np.float32 and not image.flags.writeable",
            "    assert np.count_nonzero(image) <= np.count_nonzero(targets['T1w']) + 9",
            "return targets",
        )
    )
    made = harmonization.harmonized(plan, FIRST, "1a", COARSE)
    target, _ = steps.visited(plan, *volumes.read(images["target"]["FLAIR"]))
    assert np.array_equal(volumes.read(made["FLAIR"])[0], target)


def test_a_source_is_encoded_once_for_all_experiments(study, own, tmp_path):
    encode = (
        "    def encode(self, image):\n"
        f"        open({str(tmp_path / 'calls')!r}, 'a').write('x')\n"
        "        return 2 * image\n"
    )
    plan = study(own("return sources", before=encode))
    for experiment in ("1a", "3", "5"):
        harmonization.harmonized(plan, FIRST, experiment, COARSE)
    assert len((tmp_path / "calls").read_text()) == 5  # Three stacks, and T1w and FLAIR in 3D.


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "return {c: s[1:] for c, s in sources.items()}",
            "T1w image of harmonizer own_harmonizer:Own is 191 x",
        ),
        (
            "return {c: s * np.nan for c, s in sources.items()}",
            "T1w image of harmonizer own_harmonizer:Own has",
        ),
        ("return {'T1w': sources['T1w']}", "harmonizer own_harmonizer:Own gave no T2w, FLAIR"),
    ],
)
def test_a_bad_image_is_refused_by_name_and_nothing_is_written(study, own, line, message):
    plan = study(own(line))
    with pytest.raises(ValueError, match=message):
        harmonization.harmonized(plan, FIRST, "1a", COARSE)
    assert not list(folders.root(plan).rglob("*desc-harmonized*"))


def test_results_are_made_again_when_the_harmonizer_changes_and_only_then(study, own):
    plan = study(own("return sources"))
    path = harmonization.harmonized(plan, FIRST, "1a", COARSE)["T1w"]
    first = volumes.read_sidecar(path)["Key"]
    path.touch()
    changed = path.stat().st_mtime_ns
    own("return sources")
    harmonization.harmonized(plan, FIRST, "1a", COARSE)
    assert path.stat().st_mtime_ns == changed
    own("return {c: 2 * s for c, s in sources.items()}")
    harmonization.harmonized(plan, FIRST, "1a", COARSE)
    assert volumes.read_sidecar(path)["Key"] != first


def test_a_harmonizer_that_is_not_there_is_refused_before_anything_starts(study, tmp_path):
    with pytest.raises(ValueError, match="cannot import nowhere"):
        models.check_models(study(f"{tmp_path}/nowhere:Own"))
    with pytest.raises(FileNotFoundError, match="no program here"):
        models.check_models(study({"command": ["no-such-tool"]}))
    models.check_models(study("none", weights="nowhere.pt"))  # Which it does not need.


def test_a_program_harmonizes_a_study_and_its_log_is_kept(study, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nfor c, p in zip(('T1w', 'T2w', 'FLAIR'), sys.argv[1:]):\n"
        "    shutil.copy(p, c + '.nii.gz'); print(c)\n"
    )
    tool.chmod(0o755)
    plan = study({"command": [str(tool), "{T1w}", "{T2w}", "{FLAIR}"]})
    rows = scoring.scores(plan, FIRST, "1a").query("region == 'brain'").set_index(["arm", "contrast"])
    assert rows.psnr_db["harmonized", "T2w"] == pytest.approx(rows.psnr_db["input", "T2w"])
    logs = sorted((status.report_folder(plan) / "programs").iterdir())
    assert len(logs) == 2  # The ground truth, and experiment 1a.
    assert all(log.read_text().splitlines()[1:] == list(CONTRASTS) for log in logs)


def test_another_harmonizer_has_a_notebook_of_its_own_and_haca3_does_not_know_of_it(study):
    tasks = graph.tasks(study("histogram"))
    assert {"a2_other_harmonizer", "05_analysis"} <= {task.notebook.stem for task in tasks}
    assert "04_harmonization" not in {task.notebook.stem for task in tasks}
    (last,) = [task for task in tasks if task.notebook.stem == "05_analysis"]
    assert last.parameters["changes"]["harmonizer"] == "histogram"
    for task in graph.tasks(Study(subjects=[1])):
        assert "harmonizer" not in task.parameters["changes"]
        assert task.notebook.stem != "a2_other_harmonizer"


def test_tables_of_haca3_know_nothing_of_other_harmonizers(study):
    assert "harmonizer" not in scoring._how(study("haca3"))


def test_advice_on_the_next_scan_does_not_rest_on_another_harmonizer(study, tmp_path):
    rows = pd.DataFrame({"experiment": list(EXPERIMENTS), "resolution": "3||0", "psnr_db": 30.0})
    for name, table in (("own", rows), ("other", rows.assign(harmonizer="none"))):
        path = tmp_path / name / "tables" / "scores.csv"
        path.parent.mkdir(parents=True)
        table.to_csv(path, index=False)
    assert finished.last_scores(study("haca3"))[0] == "own"
