"""What holds for the repository as a whole: one list of dependencies, cheap imports, arrows that point
down."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from helpers import layout

PROJECT = tomllib.loads((layout.ROOT / "pyproject.toml").read_text())["project"]
DESIGN_CARD = {
    "jupyterlab",
    "numpy",
    "nibabel",
    "sigpy",
    "antspyx",
    "torch",
    "scikit-image",
    "matplotlib",
    "papermill",
    "ipywidgets",
}
MODULES = sorted((layout.ROOT / "src" / "helpers").rglob("*.py"))


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower()


def test_the_packages_of_the_design_card_are_dependencies():
    declared = {
        name_of(each) for each in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["notebooks"]
    }
    assert DESIGN_CARD <= declared


def test_environment_yml_lists_no_version_that_pyproject_has():
    text = (layout.ROOT / "environment.yml").read_text()
    entries = re.findall(r"^\s*-\s+(.+?)\s*$", text, re.M)
    assert [each for each in entries if not each.startswith("-")] == [
        "conda-forge",
        "python " + PROJECT["requires-python"],
        "pytorch=*=cpu*",
        "pip",
        "pip:",
    ]
    extras = re.search(r"-e \.\[([a-z,]+)\]", text).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert all(package in text for package in DESIGN_CARD)


def test_constraints_pin_every_dependency_once():
    pins = [
        name_of(line)
        for line in (layout.ROOT / "constraints.txt").read_text().splitlines()
        if re.match(r"[a-z]", line, re.I)
    ]
    assert len(pins) == len(set(pins))
    extras = [
        each for extra in ("notebooks", "test", "book") for each in PROJECT["optional-dependencies"][extra]
    ]
    wanted = {name_of(each) for each in PROJECT["dependencies"] + extras}
    assert wanted <= set(pins)


def test_ci_runs_the_test_command_of_the_readme():
    assert "make test" in (layout.ROOT / ".ci" / "run").read_text().splitlines()
    assert re.search(r"^\s*make test\b", (layout.ROOT / "README.md").read_text(), re.M)


def test_the_workflow_runs_the_commands_of_the_readme_in_their_order():
    commands = re.findall(
        r"^      - run: (.*)$", (layout.ROOT / ".github" / "workflows" / "test.yml").read_text(), re.M
    )
    readme = re.findall(r"^\s*(make (?:demo|test))\b", (layout.ROOT / "README.md").read_text(), re.M)
    assert commands == readme == ["make demo", "make test"]


@pytest.mark.parametrize(
    "modules",
    [
        "helpers.study, helpers.volumes, helpers.layout, helpers.pipeline.steps, helpers.pipeline.scoring, "
        "helpers.runner.run, helpers.runner.cli, "
        "helpers.cohort.phantom, helpers.cohort.preparation, helpers.acquisition.degradation, "
        "helpers.registration, helpers.analysis.metrics, "
        "helpers.analysis.figures, helpers.protocol.survey, helpers.protocol.advisor"
    ],
)
def test_importing_helpers_imports_neither_ants_nor_torch_nor_sigpy(modules):
    code = (
        f"import sys, {modules}; print([name for name in ('ants', 'torch', 'sigpy') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_degrading_needs_no_ants_and_harmonizing_neither_ants_nor_sigpy():
    # sigpy itself imports torch where there is one.
    degrade = "degradation.degrade(np.ones((9, 9, 9)), np.eye(4), 'axial', study.Resolution(3, 0))"
    for code, absent in (
        (
            "import numpy as np; from helpers import study; from helpers.acquisition import degradation; "
            f"{degrade}",
            ("ants",),
        ),
        ("from helpers import haca3", ("sigpy", "ants")),
    ):
        code += f"; import sys; print([name for name in {absent} if name in sys.modules])"
        assert (
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout.strip()
            == "[]"
        )


def test_the_files_that_are_tested_first_are_there():
    tests = layout.ROOT / "tests"
    (listed,) = re.findall(r"^LONGEST = \((.*?)^\)", (tests / "conftest.py").read_text(), re.M | re.S)
    named = re.findall(r'"(\w+)"', listed)
    assert set(named) <= {path.stem for path in tests.rglob("test_*.py")} and len(named) > 5


#: What only Linux has, or macOS only with Python 3.13.
LINUX_ONLY = (
    "sched_getaffinity",
    "/proc/",
    "os.waitid",
    "os.pidfd_open",
    "/dev/shm",
    "/dev/full",
    "libc.so.6",
)
#: Where one of these is asked for first, or nothing but Linux is spoken of.
KNOWS_LINUX = {
    "helpers/haca3/fast/memory.py",
    "tests/conftest.py",
    "tests/bench.py",
    "tests/pipeline/test_cache.py",
    "tests/runner/test_slurm.py",
}


def test_nothing_needs_what_only_linux_has():
    root = layout.ROOT
    files = [*root.glob("src/**/*.py"), *root.glob("tests/**/*.py"), *root.glob("notebooks/*.ipynb")]
    using = {
        str(path.relative_to(root)).removeprefix("src/")
        for path in files
        if path != Path(__file__) and any(name in path.read_text() for name in LINUX_ONLY)
    }
    assert using <= KNOWS_LINUX


@pytest.mark.skipif(not shutil.which("make"), reason="no make: apt install make")
def test_make_lists_what_it_can_do():
    listed = subprocess.run(
        ["make", "-C", layout.ROOT, "--no-print-directory", f"PYTHON={sys.executable}", "help"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = listed.stdout.splitlines()
    assert "demo         the study on ten simulated subjects, as a preview" in lines
    assert all(re.match(r"[a-z-]+ +\S", line) for line in lines) and len(lines) > 10


#: From the lowest floor up; a room knows those of lower floors only, and a module of a folder may know others
#: of it.
FLOORS = (
    {"study", "compiler", "internals"},
    {"grid", "volumes", "linear", "layout", "drawing"},
    {"acquisition", "registration"},
    {"haca3", "harmonizers", "super_resolution", "analysis", "cohort", "protocol"},
    {"lab", "pipeline"},
    {"runner"},
)


def module_of(path):
    return ".".join(path.relative_to(layout.ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


def imports_of(path):
    """Our own modules that a module imports, wherever in it."""
    names, needs = {module_of(each) for each in MODULES}, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & names
            needs |= modules or {node.module}
    return needs


def test_imports_among_our_modules_have_no_circle():
    graph = {module_of(path): imports_of(path) for path in MODULES}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


def test_rooms_know_lower_floors_only():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for path in MODULES:
        room = (module_of(path).split(".") + [""])[1]
        for need in imports_of(path) if room else ():
            other = need.split(".")[1]
            assert other == room or floor[other] <= floor[room], f"{module_of(path)} knows {need}"


def test_the_harmonizer_knows_nothing_of_the_phantom():
    needs = {need.split(".")[1] for path in MODULES if "haca3" in path.parts for need in imports_of(path)}
    # The fusion by resolution needs what slicing does to a frequency, which is the business of the
    # degradation.
    assert needs <= {"haca3", "volumes", "study", "grid", "acquisition", "compiler"}


def test_only_volumes_touches_image_files():
    for path in MODULES:
        if "volumes" not in path.parts:
            assert not re.search(r"nib(abel)?\.(load|save)|imread|imwrite|image_write", path.read_text()), (
                path
            )


def test_no_global_seed_is_set():
    for path in (*MODULES, *layout.NOTEBOOKS.glob("*.ipynb")):
        # torch draws first weights from its global generator: seeded there, but forked, so that nobody
        # notices.
        text = re.sub(r"with torch\.random\.fork_rng\(.*\):.*\n\s+torch\.manual_seed", "", path.read_text())
        assert not re.search(r"np\.random\.seed|torch\.manual_seed|(?<![.\w])random\.seed", text), path


def test_the_table_of_faults_names_tests_that_are_there():
    text = (layout.ROOT / "tests" / "faults.md").read_text()
    named, where = 0, None
    for file, test in re.findall(r"`([\w/]+\.py)?(?:…)?(?:::(\w+))?`", text):
        where = file or where
        if test and where:
            assert f"def {test}(" in (layout.ROOT / "tests" / where).read_text(), f"{where}::{test}"
            named += 1
    assert named > 20


# ---------------------------------------------------------------- the page that people see first


def test_the_readme_has_at_most_700_words():
    assert len((layout.ROOT / "README.md").read_text().split()) <= 700


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (layout.ROOT / "docs").glob("*.md"))],
)
def test_what_a_page_links_to_is_there(page):
    path = layout.ROOT / page
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\((?!\w+:)([^)#]+)[^)]*\)", text):
        # `make book` puts the executed notebooks beside the pages.
        there = layout.ROOT / target if page.startswith("docs/") and target.startswith("notebooks/") else None
        assert (there or path.parent / target).exists(), f"{page}: {target}"


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", (layout.ROOT / "README.md").read_text(), re.M | re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "(192, 224, 30) (192, 224, 192)\n", done.stderr


# ---------------------------------------------------------------- how it is cited


def test_citation_zenodo_and_pyproject_say_the_same():
    zenodo = json.loads((layout.ROOT / ".zenodo.json").read_text())
    citation = yaml.safe_load((layout.ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["message"]
    assert citation["type"] == zenodo["upload_type"] == "software"
    assert citation["version"] == zenodo["version"] == PROJECT["version"]
    assert citation["title"] == zenodo["title"]
    assert citation["license"] == zenodo["license"] == PROJECT["license"]
    names = [author["name"] for author in citation["authors"]]
    assert (
        names
        == [each["name"] for each in zenodo["creators"]]
        == [each["name"] for each in PROJECT["authors"]]
    )
    assert citation["keywords"] == zenodo["keywords"] == PROJECT["keywords"]
    assert citation["abstract"] == zenodo["description"] == PROJECT["description"]
    # What this reproduces is named in both.
    assert citation["preferred-citation"]["title"].rstrip(".") in zenodo["notes"]


def test_the_changelog_has_the_version_and_only_one_section_that_is_not_released():
    heads = re.findall(r"^## (.*)$", (layout.ROOT / "CHANGELOG.md").read_text(), re.M)
    assert sum(head.startswith("Unreleased") for head in heads) <= 1
    assert PROJECT["version"] in [head.split()[0] for head in heads]
