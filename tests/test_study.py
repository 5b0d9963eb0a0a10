import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from helpers import grid, layout
from helpers.runner.cluster import Cluster
from helpers.study import (
    ARMS,
    CONTRASTS,
    EXPERIMENTS,
    GRID_VOXELS,
    GROUND_TRUTH,
    ORIENTATIONS,
    RESOLUTIONS,
    Resolution,
    require,
    sources,
    visited_slices,
)
from helpers.study.file import Study
from helpers.study.subjects import SimulatedSubject


def test_resolutions_are_the_papers_eight_in_its_order():
    assert [each.label for each in RESOLUTIONS] == [
        "3||0",
        "3||1",
        "4||0",
        "4||1",
        "4||1.2",
        "5||0",
        "5||1",
        "5||1.5",
    ]
    assert [each.separation_mm for each in RESOLUTIONS] == [3, 4, 4, 5, 5.2, 5, 6, 6.5]


def test_experiments_are_table_1():
    rows = """
    1a axial    axial    axial
    1b sagittal sagittal sagittal
    1c coronal  coronal  coronal
    2  axial    sagittal coronal
    3  3D       axial    axial
    4  3D       sagittal coronal
    5  axial    axial    3D
    6  sagittal coronal  3D
    """
    table = {
        row.split()[0]: dict(zip(CONTRASTS, row.split()[1:], strict=True))
        for row in rows.strip().splitlines()
    }
    assert EXPERIMENTS == table
    assert list(EXPERIMENTS) == list(table)


def test_vocabulary_is_plain_strings():
    assert CONTRASTS == ("T1w", "T2w", "FLAIR")
    assert ORIENTATIONS == ("axial", "sagittal", "coronal")


def test_the_papers_labels_and_slugs():
    assert Resolution(5, 1.5).label == "5||1.5"
    assert Resolution(5, 1.5).slug == "5skip1p5"
    assert (
        Resolution.parse("5‖1.5")
        == Resolution.parse("5||1.5")
        == Resolution.parse("5skip1p5")
        == Resolution(5, 1.5)
    )


@given(st.integers(1, 200), st.integers(0, 200))
def test_label_and_slug_name_the_same_resolution(tenths, gap_tenths):
    resolution = Resolution(tenths / 10, gap_tenths / 10)
    assert Resolution.parse(resolution.label) == resolution
    assert Resolution.parse(resolution.slug) == resolution
    assert re.fullmatch("[A-Za-z0-9]+", resolution.slug)
    assert resolution.separation_mm == pytest.approx(tenths / 10 + gap_tenths / 10)


@pytest.mark.parametrize("thickness, gap", [(0, 1), (-3, 0), (3, -1), (float("nan"), 0), (3, float("inf"))])
def test_impossible_resolutions_are_refused(thickness, gap):
    with pytest.raises(ValueError, match=r"(thickness|gap)_mm is .*accepted"):
        Resolution(thickness, gap)


@pytest.mark.parametrize(
    "thickness, gap, message",
    [
        (200, 0, "thickness_mm is 200: accepted is a number of mm from 0.1 to 20"),
        (1e-9, 0, "thickness_mm is 1e-09: accepted is a number of mm from 0.1 to 20"),
        (0.001, 0, "thickness_mm is 0.001: accepted is a number of mm from 0.1 to 20"),
        (5, 500, "gap_mm is 500: accepted is a number of mm from 0 to 20"),
        ("5", 0, "thickness_mm is 5: accepted is a number of mm"),
        (True, 0, "thickness_mm is True: accepted is a number of mm"),
        (5, None, "gap_mm is None: accepted is a number of mm"),
    ],
)
def test_resolutions_that_no_scan_of_a_brain_has_are_refused(thickness, gap, message):
    with pytest.raises(ValueError) as error:
        Resolution(thickness, gap)
    assert str(error.value).startswith(message)


def test_slices_thinner_than_the_voxels_that_they_are_made_from_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^resolutions has 0.5\|\|0, slices thinner than the voxels of 1 mm .*accepted are 1 to 20 mm$",
    ):
        Study(resolutions=["1||0", "0.5||0"])


@pytest.mark.parametrize("text", ["", "5", "5|1", "a||b", "5||-1", "0||1", "5||1.5mm"])
def test_texts_that_are_no_resolution_are_refused(text):
    with pytest.raises(ValueError, match="accepted is"):
        Resolution.parse(text)


@pytest.mark.parametrize("text", ["1e-9||0", "-5||1", "5", "0.001||0", "200||0", "5||500"])
def test_of_a_text_that_is_no_resolution_the_limits_are_said_and_are_accepted(text):
    with pytest.raises(
        ValueError, match=rf"^resolution {re.escape(repr(text))} is (unknown|impossible): "
    ) as error:
        Study(resolutions=[text])
    least, in_study, most, least_gap, most_gap = re.search(
        r"the thickness from (\S+) \(in a study (\S+)\) to (\S+) and the gap from (\S+) to (\S+)$",
        str(error.value),
    ).groups()
    assert Resolution.parse(f"{least}||0").label == "0.1||0"
    for accepted in (f"{in_study}||{least_gap}", f"{most}||{most_gap}"):
        assert Study(resolutions=[accepted]).resolutions[0].label == accepted


def test_an_experiment_may_be_given_as_the_number_that_papermill_makes_of_it():
    assert require("experiment", 2, EXPERIMENTS) == "2"


def test_an_unknown_choice_names_itself_and_what_is_accepted():
    with pytest.raises(ValueError, match=f"^experiment is '1d': accepted are {', '.join(EXPERIMENTS)}$"):
        require("experiment", "1d", EXPERIMENTS)


def test_the_ground_truth_has_three_3d_sources():
    assert sources(GROUND_TRUTH) == dict.fromkeys(CONTRASTS, "3D")
    assert sources("4") == {"T1w": "3D", "T2w": "sagittal", "FLAIR": "coronal"}


@pytest.mark.parametrize("step", [7, 11])
@pytest.mark.parametrize("resolution", RESOLUTIONS, ids=lambda each: each.label)
def test_a_preview_meets_the_phases_of_the_slice_grid_evenly(step, resolution):
    # Offset of the visited planes from the nearest slice centre, in units of the separation: its distribution
    # over the preview is that over all planes.
    phases = [(z / resolution.separation_mm) % 1 for z in visited_slices(192 * step, step)]
    everything = [(z / resolution.separation_mm) % 1 for z in range(192 * step)]
    assert {round(phase, 6) % 1 for phase in phases} == {round(phase, 6) % 1 for phase in everything}


def test_a_preview_stays_inside_and_covers_the_volume():
    assert list(visited_slices(192, 11))[0] == 5
    assert list(visited_slices(192, 11))[-1] == 181
    assert list(visited_slices(5, 1)) == [0, 1, 2, 3, 4]


def test_the_acquisitions_of_table_1_are_nine_and_those_of_one_row_three():
    assert len(Study().acquisitions()) == 9
    assert Study(experiments=["4"]).acquisitions() == [("T2w", "sagittal"), ("FLAIR", "coronal")]


def test_a_study_survives_the_trip_through_literals():
    plan = Study(subjects=[3, 1], experiments=["2", 3], resolutions=["7||0.7"], slice_step=7, taught_on=[3])
    assert Study(**plan.literals()) == plan
    assert (plan.literals()["subjects"], plan.literals()["taught_on"]) == ([3, 1], [3])


@pytest.mark.parametrize("subjects", [{"subjects": [2, 3]}, {"subjects": ["01", "02"], "bids_dir": "x"}])
def test_a_study_that_is_changed_keeps_its_subjects(subjects):
    plan = Study(**subjects)
    assert dataclasses.replace(plan, seed=1).subjects == plan.subjects
    assert dataclasses.replace(plan, subjects=plan.subjects[1:]).subjects == plan.subjects[1:]


def test_a_dropped_contrast_is_no_source_and_has_no_acquisitions():
    plan = Study(dropped=["FLAIR"])
    assert plan.given == ("T1w", "T2w")
    assert plan.sources("4") == {"T1w": "3D", "T2w": "sagittal"}
    assert plan.sources(GROUND_TRUTH) == {"T1w": "3D", "T2w": "3D"}
    assert Study(experiments=["4"], dropped=["FLAIR"]).acquisitions() == [("T2w", "sagittal")]
    assert Study(experiments=["4"], dropped=["FLAIR", "T2w"]).acquisitions() == []
    assert Study().given == CONTRASTS


def test_what_is_dropped_is_read_from_a_study_file_and_survives_the_trip_through_literals(tmp_path):
    (tmp_path / "mine.toml").write_text('dropped = ["FLAIR", "T2w"]\n')
    plan = Study.from_toml(tmp_path / "mine.toml")
    assert plan.dropped == ("T2w", "FLAIR")  # whatever the order in which they were named
    assert plan.literals()["dropped"] == ["T2w", "FLAIR"]
    assert Study(**plan.literals()) == plan


@pytest.mark.parametrize(
    "value, message",
    [
        (["T1w"], "dropped is 'T1w': accepted are T2w, FLAIR"),
        (["PDw"], "dropped is 'PDw': accepted are T2w, FLAIR"),
        (["FLAIR", "FLAIR"], "dropped names FLAIR more than once: accepted is a list without repetition"),
        ("FLAIR", "dropped is 'FLAIR': accepted is a list of contrasts, of T2w, FLAIR"),
        (3, "dropped is 3: accepted is a list"),
        ([["FLAIR"]], "accepted are T2w, FLAIR"),
    ],
)
def test_what_cannot_be_dropped_is_named(value, message):
    with pytest.raises(ValueError) as error:
        Study(dropped=value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "../x"),
        ("subjects", []),
        ("subjects", [0]),
        ("subjects", [1.5]),
        ("subjects", [1, 1]),
        ("experiments", ["1d"]),
        ("resolutions", ["3"]),
        ("reconstruction", ["oblique"]),
        ("transform", "guess"),
        ("anatomy", "none"),
        ("mask", "last"),
        ("remedies", "fusion"),
        ("remedies", ["sharpening"]),
        ("remedies", ["fusion", "fusion"]),
        ("taught_on", 1),
        ("taught_on", [1, 1]),
        ("teaching_steps", 0),
        ("variant", "haca4"),
        ("precision", "half"),
        ("compiled", 1),
        ("weights", 3),
        ("planes", "ten-coronal"),
        ("ladder", [1]),
        ("slice_step", 8),
        ("slice_step", 0),
        ("slice_step", 397),  # Of 192 slices it would see none.
        ("seed", -1),
        ("seed", 2**63),  # More than PyTorch's generators take.
        ("weights", " "),
        ("output_dir", " "),
        ("bids_dir", "''"),
    ],
)
def test_a_bad_value_of_a_study_is_named(field, value):
    with pytest.raises(ValueError) as error:
        Study(**{field: value})
    assert "accepted" in str(error.value)
    assert "\n" not in str(error.value)
    assert field.rstrip("s") in str(error.value)


def test_the_largest_step_of_a_preview_is_the_shortest_side_of_the_grid():
    assert GRID_VOXELS == min(grid.SHAPE)
    assert visited_slices(GRID_VOXELS, Study(slice_step=191).slice_step)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"subjects": [1, 2, 1]}, "subjects names 1 more than once: accepted is"),
        ({"subjects": ["01", "02", "02"], "bids_dir": "x"}, "subjects names 02 more than once"),
        ({"experiments": [2, "1a", "2"]}, "experiments names 2 more than once"),
        ({"resolutions": ["5||1.5", "3||0", "5skip1p5", "3||0"]}, "resolutions names 5||1.5, 3||0 more than"),
        (
            {"reconstruction": ["axial", "axial"], "slice_step": 1},
            "reconstruction names axial more than once",
        ),
        ({"remedies": ["fusion", "fusion"]}, "remedies names fusion more than once"),
        (
            {"subjects": ["all", "01"], "bids_dir": "x"},
            "subjects is ['all', '01']: accepted is 'all' alone, or labels",
        ),
        ({"taught_on": [2, 2]}, "taught_on names 2 more than once"),
        ({"planes": ["ten-sagittal", "ten-sagittal"]}, "planes names ten-sagittal more than once"),
        ({"ladder": ["/results/rigid", "/results/rigid/"]}, "ladder names /results/rigid more than once"),
    ],
)
def test_what_a_list_names_more_than_once_is_said(changes, message):
    with pytest.raises(ValueError) as error:
        Study(**changes)
    assert str(error.value).startswith(message)


def test_the_arms_of_a_study_are_those_that_its_remedies_make():
    both = Study(remedies=["training", "fusion", "super-resolution"])
    assert both == Study(remedies=["super-resolution", "fusion", "training"])
    assert both.arms == tuple(ARMS)
    assert Study().arms == ("harmonized",)
    assert Study(remedies=["fusion"]).arms == ("harmonized", "harmonized, resolution-aware")
    for experiment, row in EXPERIMENTS.items():
        alike = len(set(row.values())) == 1
        assert ("fusion" in both.remedies_in("harmonized, both", experiment)) != alike


def test_whom_networks_learn_from_does_not_depend_on_whom_a_notebook_shows(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('subjects = [2, 3, 4, 5]\nremedies = ["super-resolution"]\n')
    shown = Study.from_parameters(str(file), {}, subjects=[5])
    assert shown.teachers == Study.from_toml(file).teachers == tuple(map(SimulatedSubject, (2, 3, 4)))
    chosen = Study.from_parameters(str(file), {"taught_on": [4]}, subjects=[5])
    assert chosen.teachers == (SimulatedSubject(4),)
    alone = Study.from_parameters("", {"remedies": ["super-resolution"]}, subjects=[5])
    assert alone.teachers == (SimulatedSubject(5),)


def test_a_preview_is_of_one_plane():
    with pytest.raises(ValueError, match="slice_step is 11 with reconstruction in 2 planes"):
        Study(reconstruction=["axial", "coronal"])


def test_a_study_file_is_read_whole(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('subjects = [4]\nresolutions = ["6||2"]\nexperiments = [2]\n')
    assert Study.from_toml(file) == Study(
        name="mine", subjects=[4], resolutions=[Resolution(6, 2)], experiments=["2"]
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("experimnts = ['1a']", "unknown key 'experimnts': did you mean experiments?"),
        ("experiments = ['9']", "experiment is '9'"),
        ("subjects = [", "not TOML"),
        ("subjects = 01", ": accepted are lines such as seed = 1"),
    ],
)
def test_a_bad_study_file_is_named_with_its_fault(tmp_path, text, message):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        Study.from_toml(file)
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_all_known_keys_are_named_beside_the_nearest(tmp_path):
    (tmp_path / "bad.toml").write_text("sed = 1\n")
    with pytest.raises(ValueError) as error:
        Study.from_toml(tmp_path / "bad.toml")
    _, _, accepted = str(error.value).partition("unknown key 'sed': did you mean seed? accepted are ")
    assert accepted.split(", ") == [
        *(field.name for field in dataclasses.fields(Study)),
        "extends",
        "cluster",
    ]


@pytest.mark.parametrize(
    "given, mask",
    [
        ({}, "first"),
        ({"variant": "haca3plus"}, "union"),
        ({"variant": "haca3plus", "mask": "first"}, "first"),
    ],
)
def test_the_mask_is_that_of_the_published_variant_unless_it_is_given(given, mask):
    assert Study(**given).mask == mask
    assert Study(**Study(**given).literals()) == Study(**given)


# Paths as people write them


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with a data set and a variable that names it; the working folder is beside it."""
    for folder in ("home/my data", "here"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", "~/my data")
    monkeypatch.delenv("SCRATCH", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize(
    "text",
    [
        "~/my data",
        "~/my data/",
        "$HOME/my data",
        "${HOME}/my data//",
        "$DATA",
        " ~/my data ",
        "../home/my data",
        "../home/./my data/",
        Path("~/my data"),
    ],
)
def test_a_path_is_read_as_people_write_it(home, text):
    plan = Study(bids_dir=text, output_dir=text, targets=dict.fromkeys(CONTRASTS, text), planes=[text])
    expected = str(home / "my data")
    assert (plan.bids_dir, plan.output_dir, plan.planes) == (
        expected,
        expected,
        (expected if "/" in str(text) or "$" in str(text) else text,),
    )
    assert set(dict(plan.targets).values()) == {expected}
    assert Study(**plan.literals()) == plan


def test_a_path_that_was_pasted_with_quotes_or_as_an_address_of_a_file_is_that_path(home):
    folder = home / "my data"
    for text in (f"'{folder}'", f'"{folder}/"', folder.as_uri(), "file://" + str(folder), '"~/my data"'):
        assert Study(bids_dir=text).bids_dir == str(folder)


def test_weights_stay_relative_to_the_repository_and_names_of_studies_are_names(home):
    plan = Study(
        weights="~/my data/w.pt", fusion="data/models/fusion-small.pt", ladder=["ladder-rigid", "~/my data"]
    )
    assert plan.weights == str(home / "my data" / "w.pt")
    assert plan.fusion == "data/models/fusion-small.pt"
    assert plan.ladder == ("ladder-rigid", str(home / "my data"))


@pytest.mark.parametrize(
    "field, text, message",
    [
        ("output_dir", "$SCRATCH/x", "output_dir: path is '$SCRATCH/x': there is no variable $SCRATCH"),
        ("bids_dir", "${SCRATCH}", "bids_dir: path is '${SCRATCH}': there is no variable ${SCRATCH}"),
        ("weights", "~nobodyatall/x", "weights: path is '~nobodyatall/x': there is no user ~nobodyatall"),
    ],
)
def test_a_path_of_nobody_or_of_a_variable_that_is_not_set_is_refused(home, field, text, message):
    with pytest.raises(ValueError) as error:
        Study(**{field: text})
    assert str(error.value).startswith(message)


def test_a_folder_that_is_called_with_a_dollar_is_itself(home):
    folder = home / "a$SCRATCH"
    folder.mkdir()
    assert Study(bids_dir=str(folder)).bids_dir == str(folder)


def test_a_harmonizer_is_found_as_people_write_its_path(home):
    for name in ("mine.py", "tool", "weights.pt"):
        (home / "my data" / name).write_text("")
    program = '[harmonizer]\ncommand = ["~/my data/tool", "$DATA/weights.pt", "$NOBODY", "{T1w}"]\n'
    write_files(home, a='harmonizer = "~/my data/mine:Own"\n', b='harmonizer = "$DATA/mine:Own"\n', c=program)
    plans = [Study.from_toml(home / f"{name}.toml") for name in "abc"]
    assert plans[0].harmonizer == plans[1].harmonizer == f"{home}/my data/mine:Own"
    files = (f"{home}/my data/tool", f"{home}/my data/weights.pt")
    assert plans[2].harmonizer.command == (*files, "$NOBODY", "{T1w}")
    # From Python as well, where no study file lies beside it.
    assert Study(harmonizer="~/my data/mine:Own").harmonizer == f"{home}/my data/mine:Own"
    command = ["~/my data/tool", "$DATA/weights.pt", "$NOBODY", "~", "{T1w}"]
    assert Study(harmonizer={"command": command}).harmonizer.command == (*files, "$NOBODY", "~", "{T1w}")


def test_a_study_file_is_found_below_home_and_may_begin_with_a_byte_order_mark(home):
    (home / "mine.toml").write_bytes(
        b"\xef\xbb\xbf" + b'subjects = [4]\r\n[cluster]\r\nkind = "local"\r\nworkers = 3\r\n'
    )
    assert Study.from_toml("~/mine.toml") == Study(name="mine", subjects=[4])
    assert Cluster.from_toml("$HOME/mine.toml").workers == 3


def test_a_study_file_that_is_no_utf_8_says_so(tmp_path):
    (tmp_path / "mine.toml").write_bytes('name = "x"'.encode("utf-16"))
    with pytest.raises(
        ValueError, match="mine.toml: not TOML: byte 1 is no UTF-8: accepted is a file saved as UTF-8"
    ):
        Study.from_toml(tmp_path / "mine.toml")


# Study files that build on others

EIGHT_RESOLUTIONS = tuple(resolution.label for resolution in RESOLUTIONS)
TEN = {"subjects": range(1, 11), "resolutions": EIGHT_RESOLUTIONS, "slice_step": 23}
WHOLE = {
    "reconstruction": ("axial", "coronal", "sagittal"),
    "slice_step": 1,
    "fusion": "data/models/fusion-small.pt",
    "keep": "tables",
}
PREVIEW = {**TEN, "resolutions": ("3||0", "4||0", "5||1.5")}
REMEDIES = {**PREVIEW, "remedies": ("super-resolution", "fusion", "training")}
TEN_PREVIEW = {**PREVIEW, "remedies": ("fusion",)}
CLINIC = {**PREVIEW, "experiments": ("1a", "1b", "1c", "3"), "downstream": True}
LADDER = {**TEN, "resolutions": ("5||1.5",)}
SHIPPED_STUDIES = {
    "demo": PREVIEW,
    "book": {**PREVIEW, "subjects": (1, 2)},
    "remedies": REMEDIES,
    "gaps": {
        **TEN,
        "experiments": ("1a", "1b", "1c"),
        "resolutions": ("3||1", "4||0", "4||1", "5||0"),
    },
    "clinic": {**CLINIC, "remedies": REMEDIES["remedies"]},
    "clinic-histogram": {**CLINIC, "harmonizer": "histogram"},
    "clinic-none": {**CLINIC, "harmonizer": "none"},
    "demo-none": {**PREVIEW, "harmonizer": "none"},
    "demo-histogram": {**PREVIEW, "harmonizer": "histogram"},
    "haca3-container": {
        **PREVIEW,
        "harmonizer": {
            "command": (
                "singularity exec --nv -e haca3.sif haca3-test "
                "--in-path {T1w} --in-path {T2w} --in-path {FLAIR} "
                "--target-image {target_T1w} --target-image {target_T2w} --target-image {target_FLAIR} "
                "--out-path {folder}/T1w.nii.gz --out-path {folder}/T2w.nii.gz "
                "--out-path {folder}/FLAIR.nii.gz "
                "--harmonization-model harmonization_public.pt --fusion-model fusion.pt "
                "--intermediate-out-dir {folder}"
            ).split(),
            "output": "{contrast}_harmonized_fusion.nii.gz",
            "time_limit_min": 90,
        },
    },
    "ten": {**TEN_PREVIEW, "planes": ("ten-coronal", "ten-sagittal")},
    "ten-coronal": {**TEN_PREVIEW, "reconstruction": ("coronal",)},
    "ten-sagittal": {**TEN_PREVIEW, "reconstruction": ("sagittal",)},
    "ten-union": {**PREVIEW, "experiments": ("1a", "3", "5"), "mask": "union"},
    "ten-argmax": {
        **PREVIEW,
        "subjects": range(1, 5),
        "experiments": ("1a", "1b"),
        "reconstruction": ("coronal",),
        "anatomy": "argmax",
    },
    "ladder": {**LADDER, "ladder": ("ladder-rigid", "ladder-affine")},
    "ladder-rigid": {**LADDER, "transform": "rigid"},
    "ladder-affine": {**LADDER, "transform": "affine"},
    "paper": {**TEN, **WHOLE, "transform": "rigid"},
    "slurm": {**TEN, **WHOLE, "transform": "rigid", "name": "paper"},
    "whole": {
        **WHOLE,
        "subjects": (1, 2),
        "experiments": ("1a", "1b", "1c", "2", "3", "4"),
        "resolutions": ("5||1.5",),
    },
}


@pytest.mark.parametrize("name", SHIPPED_STUDIES)
def test_a_shipped_study_is_what_it_says(name):
    expected = {"name": name, **SHIPPED_STUDIES[name]}
    expected["subjects"] = tuple(expected["subjects"])
    assert Study.from_toml(layout.ROOT / "studies" / f"{name}.toml") == Study(**expected)


def test_a_data_set_does_not_take_over_simulated_subjects(tmp_path):
    mine = tmp_path / "mine.toml"
    container = layout.ROOT / "studies" / "haca3-container.toml"
    mine.write_text(f'extends = "{container}"\nbids_dir = "{tmp_path}"\n')
    study = Study.from_toml(mine)
    assert study.subjects == Study(bids_dir=str(tmp_path)).subjects
    assert study.resolutions == Study.from_toml(container).resolutions
    some = tmp_path / "some.toml"
    some.write_text('extends = "mine.toml"\nsubjects = ["01"]\n')
    other = tmp_path / "other.toml"
    other.write_text(f'extends = "some.toml"\nbids_dir = "{tmp_path}"\n')
    assert Study.from_toml(other).subjects == Study.from_toml(some).subjects


def test_every_shipped_study_is_tested():
    assert {path.stem for path in (layout.ROOT / "studies").glob("*.toml")} == set(SHIPPED_STUDIES)


def write_files(folder, **texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.toml").write_text(text)


def test_a_study_file_changes_what_it_says_of_the_file_that_it_extends(tmp_path):
    write_files(tmp_path, a='seed = 3\nsubjects = [2]\nselect = {T1w = "run-1"}\n')
    write_files(tmp_path, **{"sub/b": 'extends = "../a.toml"\nsubjects = [4, 5]\n'})
    write_files(tmp_path, c='extends = "sub/b.toml"\nslice_step = 7\nselect = {T2w = "run-2"}\n')
    plan = Study.from_toml(tmp_path / "c.toml")
    # A table is replaced whole, as any value.
    assert plan == Study(name="c", seed=3, subjects=[4, 5], slice_step=7, select={"T2w": "run-2"})


def test_a_study_that_extends_another_does_not_write_into_its_folder_unless_it_says_so(tmp_path):
    write_files(
        tmp_path, a=f'name = "first"\noutput_dir = "{tmp_path / "results"}"\n', b='extends = "a.toml"\n'
    )
    plan = Study.from_toml(tmp_path / "b.toml")
    assert (plan.name, plan.output_dir) == ("b", "")


@pytest.mark.parametrize(
    "value, message",
    [
        ("histogramm", "harmonizer is 'histogramm': did you mean histogram?"),
        ("mine", "accepted are haca3, none, histogram, zscore, nyul, 'package.module:name', or a table"),
        ("mine:", "harmonizer is 'mine:': accepted are"),
        (3, "harmonizer is 3: accepted are"),
        ({"comand": ["x"]}, "harmonizer: unknown key 'comand': did you mean command?"),
        ({"output": "{contrast}.nii"}, "accepted is a table with a command"),
        ({"command": "haca3 {T1w}"}, "harmonizer.command is 'haca3 {T1w}': accepted is a list of words"),
        ({"command": []}, "harmonizer.command is"),
        ({"command": ["x", "{T1}"]}, "harmonizer.command: unknown key 'T1': did you mean T1w?"),
        (
            {"command": ["x"], "output": "out.nii.gz"},
            "harmonizer.output is 'out.nii.gz': accepted is the name",
        ),
        # What lies outside of the folder that is made for it may be of another run.
        (
            {"command": ["x"], "output": "/tmp/{contrast}.nii.gz"},
            "harmonizer.output is '/tmp/{contrast}.nii.gz': accepted is the name of a NIfTI file in {folder}",
        ),
        ({"command": ["x"], "output": "a/../../{contrast}.nii"}, "harmonizer.output is 'a/../../"),
        (
            {"command": ["x"], "time_limit_min": 0},
            "harmonizer.time_limit_min is 0: accepted are minutes above 0",
        ),
    ],
)
def test_a_harmonizer_that_cannot_be_one_is_refused_by_name(value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Study(harmonizer=value)


def test_what_haca3_alone_can_do_is_refused_to_others():
    numbers = {"theta": [0, 0], "eta": [0, 0], "norm": 1}
    with pytest.raises(ValueError, match="targets.FLAIR are theta, eta and norm, which HACA3 alone takes"):
        Study(harmonizer="none", targets={"T1w": numbers, "T2w": numbers, "FLAIR": numbers})
    with pytest.raises(ValueError, match="dropped is T2w with harmonizer histogram"):
        Study(harmonizer="histogram", dropped=["T2w"])
    with pytest.raises(ValueError, match="remedies has fusion, which HACA3 alone can do"):
        Study(harmonizer="zscore", remedies=["super-resolution", "fusion"])
    with pytest.raises(ValueError, match="harmonizer.command has {T2w}, which is dropped"):
        Study(harmonizer={"command": ["x", "{T1w}", "{T2w}"]}, dropped=["T2w"])
    assert Study(harmonizer={"command": ["x", "{T1w}"]}, dropped=["T2w"]).harmonizer_name == "x"


def test_a_harmonizer_beside_the_study_file_is_found_from_anywhere(tmp_path):
    (tmp_path / "pack").mkdir()
    for name in ("mine.py", "pack/__init__.py", "pack/inner.py", "tool", "weights.pt"):
        (tmp_path / name).write_text("")
    program = '[harmonizer]\ncommand = ["./tool", "weights.pt", "{T1w}", "elsewhere.pt"]\n'
    write_files(tmp_path, a='harmonizer = "mine:Own"\n', b='harmonizer = "pack.inner:own"\n', c=program)
    write_files(tmp_path, **{"sub/d": 'extends = "../a.toml"\n'}, e='harmonizer = "numpy:Own"\n')
    plans = {name: Study.from_toml(tmp_path / f"{name}.toml") for name in ("a", "b", "c", "sub/d", "e")}
    assert plans["a"].harmonizer == plans["sub/d"].harmonizer == f"{tmp_path}/mine:Own"
    assert plans["a"].harmonizer_name == "mine:Own"
    assert plans["b"].harmonizer == f"{tmp_path}/pack.inner:own"
    assert plans["c"].harmonizer.command == (
        f"{tmp_path}/tool",
        f"{tmp_path}/weights.pt",
        "{T1w}",
        "elsewhere.pt",
    )
    assert plans["e"].harmonizer == "numpy:Own"
    for plan in plans.values():
        assert Study(**plan.literals()) == plan


def test_a_study_file_has_the_cluster_of_the_file_that_it_extends_or_its_own(tmp_path):
    write_files(tmp_path, a='[cluster]\nkind = "slurm"\njobs = 7\n', b='extends = "a.toml"\n')
    write_files(tmp_path, c='extends = "b.toml"\n[cluster]\nworkers = 3\n')
    assert Cluster.from_toml(tmp_path / "b.toml") == Cluster(kind="slurm", jobs=7)
    assert Cluster.from_toml(tmp_path / "c.toml") == Cluster(workers=3)


@pytest.mark.parametrize(
    "texts, message",
    [
        ({"a": 'extends = "b.toml"'}, "{0}/b.toml: no such study file (extends in {0}/a.toml)"),
        ({"a": 'extends = "a.toml"'}, "{0}/a.toml: builds on itself (extends in {0}/a.toml): accepted is"),
        (
            {"a": 'extends = "b.toml"', "b": 'extends = "./a.toml"'},
            "{0}/a.toml: builds on itself (extends in {0}/b.toml): accepted is",
        ),
        ({"a": "extends = 3"}, "{0}/a.toml: extends is 3: accepted is the path of another study file"),
        ({"a": 'extends = ""'}, "{0}/a.toml: extends is '': accepted is the path"),
        (
            {"a": 'extends = "$NOWHERE/b.toml"'},
            "{0}/a.toml: extends: path is '$NOWHERE/b.toml': there is no variable",
        ),
        ({"a": 'extends = "b.toml"', "b": "seed = ["}, "{0}/b.toml: not TOML"),
        ({"a": 'extends = "b.toml"', "b": "sed = 1"}, "{0}/b.toml: unknown key 'sed': did you mean seed?"),
        ({"a": 'extends = "b.toml"', "b": "seed = -1"}, "{0}/b.toml: seed is -1: accepted are"),
        ({"a": 'extends = "b.toml"\nseed = -1', "b": ""}, "{0}/a.toml: seed is -1: accepted are"),
    ],
)
def test_a_study_file_that_cannot_be_extended_is_refused_in_one_line_that_names_the_file(
    texts, message, tmp_path, monkeypatch
):
    monkeypatch.delenv("NOWHERE", raising=False)
    write_files(tmp_path, **texts)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Study.from_toml(tmp_path / "a.toml")
    assert str(error.value).replace("/./", "/").startswith(message.format(tmp_path))
    assert "\n" not in str(error.value)


# The study of a notebook's parameters


def test_a_notebook_has_the_study_of_its_file_with_some_changes(home):
    demo = Study.from_toml(layout.ROOT / "studies" / "demo.toml")
    # From any folder.
    assert Study.from_parameters("studies/demo.toml", {}) == demo
    (home / "mine.toml").write_text('extends = "base.toml"\nseed = 3\n')
    (home / "base.toml").write_text("slice_step = 7\n")
    plan = Study.from_parameters("~/mine.toml", {"anatomy": "argmax", "seed": 4}, subjects=[2])
    assert plan == Study(name="mine", slice_step=7, seed=4, anatomy="argmax", subjects=[2])


def test_without_a_file_a_notebook_has_the_defaults_with_some_changes():
    assert Study.from_parameters("", {}) == Study()
    assert Study.from_parameters("", {"seed": 2}, subjects=["01"]) == Study(seed=2, subjects=["01"])


def test_a_change_of_the_variant_changes_the_mask_that_the_file_does_not_say(tmp_path):
    (tmp_path / "mine.toml").write_text("")
    assert Study.from_parameters(str(tmp_path / "mine.toml"), {"variant": "haca3plus"}).mask == "union"


@pytest.mark.parametrize(
    "study, changes, message",
    [
        ("studies/dmo.toml", {}, "{0}/studies/dmo.toml: no such study file"),
        (3, {}, "study is 3: accepted is the path of a study file"),
        ("$NOWHERE/x.toml", {}, "study: path is '$NOWHERE/x.toml': there is no variable $NOWHERE"),
        ("", "anatomy", "changes is 'anatomy': accepted are fields and their values (papermill -y "),
        ("", {"anatmy": "argmax"}, "changes: unknown key 'anatmy': did you mean anatomy?"),
        ("", {3: "argmax"}, "changes: unknown key '3': accepted are name, experiments"),
        ("", {"subjects": [1]}, "changes: unknown key 'subjects': accepted are name, experiments"),
        ("", {"anatomy": "sampled"}, "anatomy is 'sampled': accepted are shared, independent, argmax"),
        (
            "studies/demo.toml",
            {"reconstruction": ["axial", "coronal"]},
            "slice_step is 23 with reconstruction in 2 planes",
        ),
    ],
)
def test_bad_parameters_of_a_notebook_are_refused_in_one_line(study, changes, message, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Study.from_parameters(study, changes, subjects=[1])
    assert str(error.value).startswith(message.format(layout.ROOT))
    assert "\n" not in str(error.value)
