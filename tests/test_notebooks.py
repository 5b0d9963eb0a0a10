"""Notebooks: first what can be seen without running them, then each of them run on small parameters."""

import ast
import json
import statistics
import subprocess
import sys

import nbformat
import papermill
import pytest

from helpers import layout

NOTEBOOKS = sorted(layout.NOTEBOOKS.glob("*.ipynb"))
pytestmark = pytest.mark.filterwarnings("ignore")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook):
    (cell,) = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    return cell


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_the_method_can_be_read_in_the_list_of_notebooks():
    stems = [path.stem for path in NOTEBOOKS]
    method = [
        "cohort",
        "slice_profiles",
        "degradation",
        "registration",
        "harmonization",
        "analysis",
        "protocol_survey",
        "lab_meeting",
        "remedies",
    ]
    assert [stem for stem in stems if stem[0] == "0"] == [
        f"{number:02d}_{name}" for number, name in enumerate(method)
    ]


def test_no_output_is_stored_and_the_kernel_is_python3(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_opens_with_a_title_a_question_and_what_one_can_do_afterwards(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "?" in first.source
    for part in ("After this you can", "*In:*", "*Out:*", "*Takes*"):
        assert part in first.source
    assert notebook.cells[-1].cell_type == "markdown"
    assert "Try:" in notebook.cells[-1].source


def test_no_line_of_a_code_cell_is_cut_off_on_the_page(notebook):
    assert not [line for cell in code_cells(notebook) for line in cell.source.splitlines() if len(line) > 90]


def test_cells_are_thin_and_explained(notebook):
    lines = sorted(
        sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code_cells(notebook)
    )
    assert statistics.median(lines) <= 4
    assert lines[int(0.9 * (len(lines) - 1))] <= 12
    assert len(notebook.cells) - len(lines) >= len(lines)


def test_the_parameters_are_annotated_literals_with_a_comment_each(notebook):
    cell = parameters_cell(notebook)
    body = ast.parse(cell.source).body
    assert body
    for statement in body:
        assert isinstance(statement, ast.AnnAssign)
        ast.literal_eval(statement.value)
        assert "  # " in cell.source.splitlines()[statement.end_lineno - 1]


def test_no_import_takes_the_name_of_a_parameter(notebook):
    parameters = {statement.target.id for statement in ast.parse(parameters_cell(notebook).source).body}
    code = ast.parse("\n".join(cell.source for cell in code_cells(notebook) if "%" not in cell.source[:1]))
    imports = [node for node in ast.walk(code) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    assert not names & parameters


# Small parameters: one subject, one or two resolutions, one plane.
SMALL_STUDY = {"name": "small", "experiments": ["3"], "resolutions": ["5||1.5"]}
SMALL = {
    "00_cohort": {"changes": {"name": "small"}},
    "01_slice_profiles": {"changes": {"name": "small"}, "interactive": False},
    "02_degradation": {"changes": SMALL_STUDY, "interactive": False},
    "03_registration": {"changes": SMALL_STUDY},
    "04_harmonization": {"experiment": 3, "changes": {**SMALL_STUDY, "slice_step": 37}},
    "05_analysis": {"changes": {**SMALL_STUDY, "subjects": [1], "slice_step": 37}},
    "06_protocol_survey": {"name": "small"},
    "07_lab_meeting": {"name": "small", "subjects": [1], "interactive": False},
    "08_remedies": {
        "study": "",
        "changes": {"name": "small", "remedies": ["super-resolution"], "teaching_steps": 2},
        "results": "",
    },
    "a2_other_harmonizer": {"experiment": 3, "changes": {**SMALL_STUDY, "name": "other", "slice_step": 37}},
    "a1_train_harmonizer": {
        "subjects": 2,
        "slices": 8,
        "steps": 12,
        "eta_steps": 4,
        "fusion_steps": 0,
        "slice_step": 60,
    },
}


def into(folder, parameters, known):
    """Parameters by which a notebook writes into a folder."""
    if "changes" in known:
        return {**parameters, "changes": {**parameters.get("changes", {}), "output_dir": str(folder)}}
    return {**parameters, "output_dir" if "output_dir" in known else "folder": str(folder)}


#: Registration by ANTs, and the notebooks beside the method.
SLOW = ("03_registration", "a1_train_harmonizer", "a2_other_harmonizer")


@pytest.mark.parametrize(
    "stem", [pytest.param(stem, marks=[pytest.mark.slow] * (stem in SLOW)) for stem in SMALL]
)
def test_it_runs_under_papermill_from_another_folder(stem, results_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = papermill.inspect_notebook(str(layout.NOTEBOOKS / f"{stem}.ipynb"))
    parameters = into(results_dir, SMALL[stem], known)
    assert set(parameters) <= set(known)
    executed = papermill.execute_notebook(
        str(layout.NOTEBOOKS / f"{stem}.ipynb"),
        str(tmp_path / "out.ipynb"),
        parameters,
        progress_bar=False,
        cwd=str(tmp_path),
    )
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_analysis_wrote_its_figures_beside_their_data(results_dir):
    # Experiment 3 alone was run: its figure is 6, and figure 2 is always there.
    for number in (2, 6):
        for suffix in ("png", "pdf", "csv"):
            assert (results_dir / "figures" / f"figure_{number}.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize(
    "stem, parameter, value, message",
    [
        ("04_harmonization", "experiment", "1d", "ValueError: experiment is '1d': accepted are 1a"),
        ("04_harmonization", "changes", {"resolutions": ["5|1"]}, "ValueError: resolution '5|1' is unknown"),
        (
            "05_analysis",
            "changes",
            {"anatmy": "argmax"},
            "ValueError: changes: unknown key 'anatmy': did you mean anatomy?",
        ),
        ("00_cohort", "study", "studies/dmo.toml", "studies/dmo.toml: no such study file"),
        ("02_degradation", "contrast", "PDw", "ValueError: contrast is 'PDw': accepted are T1w, T2w, FLAIR"),
        (
            "03_registration",
            "orientation",
            "oblique",
            "ValueError: orientation is 'oblique': accepted are axial",
        ),
        (
            "06_protocol_survey",
            "measure",
            "psnr",
            "ValueError: measure is 'psnr': accepted are psnr_db, ssim",
        ),
    ],
)
def test_a_bad_parameter_stops_it_at_once_and_is_named(stem, parameter, value, message, tmp_path):
    # By the cell after the parameters; without a kernel, which takes seconds to start.
    defaults, first = code_cells(nbformat.read(layout.NOTEBOOKS / f"{stem}.ipynb", as_version=4))[:2]
    assert "parameters" in defaults.metadata.tags
    names = {}
    exec(defaults.source, names)
    names |= into(tmp_path / "results", {parameter: value}, names)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        exec(first.source, names)
    assert message in f"{error.typename}: {error.value}"
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_harmonization_shows_a_dropped_contrast_as_a_target_alone(results_dir, tmp_path):
    path = str(layout.NOTEBOOKS / "04_harmonization.ipynb")
    parameters = into(results_dir, SMALL["04_harmonization"], papermill.inspect_notebook(path))
    parameters["changes"]["dropped"] = ["T2w"]
    executed = papermill.execute_notebook(
        path, str(tmp_path / "out.ipynb"), parameters, progress_bar=False, cwd=str(tmp_path)
    )
    tables = [
        output["data"]["text/plain"]
        for cell in code_cells(executed)
        for output in cell.outputs
        if "text/plain" in output.get("data", {})
    ]
    assert "{'T1w': '3D', 'FLAIR': 'axial'}" in tables
    (scores,) = [each for each in tables if "input" in each]
    assert scores.count("harmonized") == 3
    assert scores.count("input") == 2


@pytest.mark.slow
def test_papermill_by_hand_takes_the_experiment_as_a_number(results_dir, tmp_path):
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(layout.NOTEBOOKS / "04_harmonization.ipynb"),
        "out.ipynb",
        "-p",
        "experiment",
        "3",
    ]
    command += [
        "-y",
        f"{{changes: {{name: small, output_dir: '{results_dir}', resolutions: ['5||1.5'], slice_step: 37}}}}",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    executed = json.loads((tmp_path / "out.ipynb").read_text())
    assert all(cell["metadata"]["papermill"]["exception"] in (False, None) for cell in executed["cells"])
