import hashlib

import nbformat
import pytest
from helpers import batch, cli, layout
from helpers.batch import Task
from helpers.cluster import Cluster
from helpers.study import EXPERIMENTS, Study


def test_the_demo_executes_every_notebook_of_the_method_after_what_it_needs():
    wanted = batch.tasks(Study(subjects=[1, 2]))
    names = [task.name for task in wanted]
    assert len(set(names)) == len(names)
    for number, task in enumerate(wanted):
        assert task.notebook.is_file()
        assert set(task.needs) <= set(names[:number])
    for experiment in EXPERIMENTS:
        for subject in (1, 2):
            assert f"04_harmonization_sub-{subject:02d}_exp-{experiment}" in names
    assert {task.notebook.stem[:2] for task in wanted} == {"00", "01", "02", "03", "04", "05"}
    batch.check_parameters(wanted)


def test_a_parameter_that_the_notebook_does_not_know_is_refused():
    (task,) = [each for each in batch.tasks(Study()) if each.name == "05_analysis"]
    bad = Task(task.name, task.notebook, {**task.parameters, "experimnt": 3})
    with pytest.raises(ValueError, match=r"05_analysis.ipynb: parameter experimnt=3 is unknown: accepted are name, subjects"):
        batch.check_parameters([bad])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def notebook(path, *cells):
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    node.cells[0].metadata["tags"] = ["parameters"]
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(node, path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_failing_notebook_stops_only_those_that_need_it(tmp_path):
    good = notebook(tmp_path / "good.ipynb", "x: int = 0", "print(x + 1)")
    bad = notebook(tmp_path / "bad.ipynb", "x: int = 0", "raise RuntimeError(f'first line\\nfailed with {x}')")
    wanted = [
        Task("first", good, {"x": 1}),
        Task("fails", bad, {"x": 2}),
        Task("after-first", good, {"x": 3}, ("first",)),
        Task("after-fails", good, {"x": 4}, ("fails",)),
        Task("after-that", good, {}, ("after-fails", "first")),
    ]
    results = batch.execute_all(wanted, tmp_path / "report", Cluster(workers=2))
    assert {name: each.error for name, each in results.items()} == {"first": None, "after-first": None, "fails": "failed with 2"}
    assert "<html" in (tmp_path / "report" / "fails.html").read_text()
    assert (tmp_path / "report" / "after-first.ipynb").is_file()


@pytest.mark.parametrize(
    "text, words",
    [
        ("experiments = ['7']", ["experiment is '7'", "accepted are 1a"]),
        ("resolutions = ['3|0']", ["resolution '3|0'", "accepted is thickness||gap"]),
        ("reconstruction = ['oblique']", ["reconstruction is 'oblique'", "accepted are axial"]),
        ("tranform = 'known'", ["unknown key 'tranform'", "did you mean transform?"]),
        ("weights = 'no/such.pt'", ["no/such.pt", "no such checkpoint"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_written(tmp_path, capsys, text, words):
    study = tmp_path / "mine.toml"
    study.write_text(f'output_dir = "{tmp_path / "results"}"\n{text}\n')
    assert cli.main(["run", str(study)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "results").exists()


def test_a_missing_study_file_is_named(capsys):
    assert cli.main(["run", "no/such/study.toml"]) == 2
    assert "no/such/study.toml: no such study file" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_starts(tmp_path, capsys):
    import torch

    torch.save({"beta_encoder": {"in_conv.weight": torch.zeros(3)}}, tmp_path / "odd.pt")
    study = tmp_path / "mine.toml"
    study.write_text(f'output_dir = "{tmp_path / "results"}"\nweights = "{tmp_path / "odd.pt"}"\n')
    assert cli.main(["run", str(study)]) == 2
    error = capsys.readouterr().err
    assert "odd.pt" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_small_study_from_the_command_line_to_its_figures_and_again(tmp_path, capsys):
    study = tmp_path / "tiny.toml"
    study.write_text(f'output_dir = "{tmp_path / "results"}"\nsubjects = [1]\nexperiments = ["1a", "3"]\nresolutions = ["3||0", "5||1.5"]\n')
    assert cli.main(["run", str(study), "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert "Mean PSNR inside the brain" in said
    assert str(tmp_path / "results" / "figures") in said
    assert (tmp_path / "results" / "report" / "index.html").is_file()
    results = {path: digest(path) for path in tmp_path.glob("results/**/*") if path.suffix in (".gz", ".csv", ".pdf", ".png")}
    # Two ground truths, two experiments at two resolutions, and 1b at 5||1.5, which figure 2 shows.
    assert len([path for path in results if "harmonized" in path.name]) == 3 * (2 + 2 * 2 + 1)
    times = {path: path.stat().st_mtime_ns for path in results if path.suffix == ".gz"}
    assert cli.main(["run", str(study), "--workers", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path: digest(path) for path in results} == results
