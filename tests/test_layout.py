"""Images of a data set, by their names: none is taken that is not meant, and what is advised is accepted."""

import re

import pytest
from hypothesis import given, settings, strategies as st

from helpers import layout
from helpers.study.file import Study

CONTRAST = ("T1w",)


def dataset(folder, *names, subject="01"):
    """Empty files: only their names count here."""
    for name in names:
        path = folder / f"sub-{subject}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def found(folder, select=None, labels=("all",)):
    images, left_out = layout.find_subjects(folder, labels, select or {}, CONTRAST)
    return {label: paths["T1w"].name for label, paths in images.items()}, left_out


def advised(folder):
    """What the question about several images advises, as a study reads it."""
    with pytest.raises(ValueError, match="say in the study which") as error:
        found(folder)
    ((contrast, answer),) = re.findall(r'select = \{(\w+) = "([^"]+)"\}', str(error.value))
    return dict(Study(select={contrast: answer}).select)


def test_the_plain_image_beside_a_contrast_enhanced_one_can_be_meant_and_is_advised(tmp_path):
    dataset(tmp_path, "anat/sub-01_T1w.nii.gz", "anat/sub-01_ce-gadolinium_T1w.nii.gz")
    assert advised(tmp_path) == {"T1w": "no-ce"}
    assert found(tmp_path, {"T1w": "no-ce"})[0] == {"01": "sub-01_T1w.nii.gz"}
    assert found(tmp_path, {"T1w": "ce-gadolinium"})[0] == {"01": "sub-01_ce-gadolinium_T1w.nii.gz"}


def test_an_image_with_an_entity_that_is_not_wanted_is_not_taken_even_if_it_is_the_only_one(tmp_path):
    dataset(tmp_path, "anat/sub-01_ce-gd_T1w.nii.gz")
    assert found(tmp_path)[0] == {"01": "sub-01_ce-gd_T1w.nii.gz"}
    images, left_out = found(tmp_path, {"T1w": "no-ce"})
    assert images == {}
    assert 'no T1w (sub-01_ce-gd_T1w.nii.gz is not meant by select = {T1w = "no-ce"})' in left_out["01"]


keys = st.sampled_from(["acq", "ce", "rec", "run", "part", "echo", "Acq", "desc"])
values = st.sampled_from(["1", "2", "gd", "mprage+gd", "3D", "a"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    names=st.sets(
        st.lists(st.tuples(keys, values), max_size=4, unique_by=lambda pair: pair[0]).map(tuple),
        min_size=2,
        max_size=5,
    )
)
def test_what_is_advised_means_one_image_whatever_the_names(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bids")
    files = {
        "_".join(["sub-01", *(f"{key}-{value}" for key, value in entities), "T1w.nii.gz"])
        for entities in names
    }
    dataset(folder, *(f"anat/{name}" for name in files))
    try:
        select = advised(folder)
    except pytest.fail.Exception:  # No question: the same entities in another order.
        assert "no entity tells apart" in found(folder)[1]["01"]
        assert len({frozenset(entities) for entities in names}) < len(names)
    else:
        assert found(folder, select)[0]["01"] in files


def test_the_same_name_with_and_without_compression_is_no_question_that_select_could_answer(tmp_path):
    dataset(tmp_path, "anat/sub-01_T1w.nii.gz", "anat/sub-01_T1w.nii")
    assert "which no entity tells apart: accepted is one of them" in found(tmp_path)[1]["01"]


@pytest.mark.parametrize(
    "name, cause",
    [
        ("sub-01_T1w.mgz", "is no .nii or .nii.gz file"),
        ("sub-01_T1w.NII.GZ", "is no .nii or .nii.gz file"),
        ("sub-02_T1w.nii.gz", "is not called sub-01_..., as its folder is"),
        ("sub-01_T1W.nii.gz", "is not called T1w"),
        ("sub-01_T1.nii.gz", "is not called T1w"),
        ("sub-01_T1w (1).nii.gz", "is not called T1w"),
        ("sub-01_acq-a_b_T1w.nii.gz", "has parts that are not <key>-<value> of letters, digits and +"),
        ("sub-01_acq-a b_T1w.nii.gz", "has parts that are not <key>-<value> of letters, digits and +"),
    ],
)
def test_why_an_image_is_none_is_its_true_cause(tmp_path, name, cause):
    dataset(tmp_path, f"anat/{name}")
    assert f"no T1w ({name} {cause}) in " in found(tmp_path)[1]["01"]


def test_a_session_that_the_name_lacks_is_the_cause(tmp_path):
    dataset(tmp_path, "ses-2/anat/sub-01_T1w.nii.gz")
    assert (
        "sub-01_T1w.nii.gz is not called sub-01_ses-2_..., as its folder is" in found(tmp_path)[1]["01_ses-2"]
    )


def test_a_link_to_nothing_is_the_cause_and_not_passed_over(tmp_path):
    dataset(tmp_path, "anat/sub-01_run-2_T1w.nii.gz")
    dead = tmp_path / "sub-01" / "anat" / "sub-01_run-1_T1w.nii.gz"
    dead.symlink_to("../../.git/annex/objects/x")
    assert advised(tmp_path) == {"T1w": "run-1"}
    assert (
        "no T1w (sub-01_run-1_T1w.nii.gz is a link to nothing)" in found(tmp_path, {"T1w": "run-1"})[1]["01"]
    )
    assert found(tmp_path, {"T1w": "run-2"})[0] == {"01": "sub-01_run-2_T1w.nii.gz"}


@pytest.mark.parametrize("place", ["sub-02", "sub-02/ses-1"])
def test_a_folder_that_is_a_link_to_nothing_is_left_out_and_not_passed_over(tmp_path, place):
    dataset(tmp_path, "anat/sub-01_T1w.nii.gz")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to("nowhere")
    assert [why for why in found(tmp_path)[1].values()] == [
        f"{tmp_path / place}: a link to nothing: accepted is a folder"
    ]


def test_a_folder_that_may_not_be_read_is_named_as_other_faults_are(tmp_path, monkeypatch):
    dataset(tmp_path, "anat/sub-01_T1w.nii.gz")

    def forbidden(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(layout, "_names", forbidden)
    assert found(tmp_path)[1] == {"01": f"{tmp_path / 'sub-01' / 'anat'}: Permission denied"}


@pytest.mark.parametrize("name", ["Anat/sub-01_T1w.nii.gz", "sub-01_T1w.nii.gz", "anat"])
def test_of_a_subject_without_the_folder_anat_it_is_said_what_there_is(tmp_path, name):
    dataset(tmp_path, name)
    there = f"no folder anat, but {name.split('/')[0]}: accepted are images in anat"
    assert found(tmp_path)[1]["01"] == f"{tmp_path / 'sub-01'}: {there}"


def test_a_plus_belongs_to_a_label(tmp_path):
    dataset(tmp_path, "anat/sub-01_acq-mprage+gd_T1w.nii.gz")
    assert found(tmp_path)[0] == {"01": "sub-01_acq-mprage+gd_T1w.nii.gz"}
    dataset(tmp_path, "anat/sub-01_acq-mprage_T1w.nii.gz")
    assert found(tmp_path, advised(tmp_path))[0]["01"].startswith("sub-01_acq-mprage")


def test_images_beside_folders_of_sessions_are_told(tmp_path):
    dataset(tmp_path, "anat/sub-01_T1w.nii.gz", "ses-2/anat/sub-01_ses-2_T1w.nii.gz")
    images, left_out = found(tmp_path)
    assert list(images) == ["01_ses-2"]
    assert left_out["01"].endswith(
        "images beside folders ses-* belong to no session: accepted are images in ses-*/anat"
    )
    # Who names a session has chosen.
    assert found(tmp_path, labels=["01_ses-2"])[1] == {}


def test_of_a_session_that_is_not_there_it_is_said_which_are(tmp_path):
    dataset(tmp_path, "ses-1/anat/sub-01_ses-1_T1w.nii.gz", "ses-b/anat/sub-01_ses-b_T1w.nii.gz")
    assert found(tmp_path, labels=["01_ses-2"])[1]["01_ses-2"] == "sub-01: no session '2': accepted are 1, b"


def test_a_file_in_the_place_of_a_data_set_is_called_one(tmp_path):
    path = tmp_path / "bids"
    path.write_text("")
    with pytest.raises(NotADirectoryError, match="bids: a file: accepted is the folder of a BIDS data set"):
        layout.find_subjects(path, ["all"], {})
