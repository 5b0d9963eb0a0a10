"""The book: its diagrams are drawn, its words explained, and it is built without a warning and read without a
network."""

import importlib.util
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import nbformat
import numpy as np
import pytest
from PIL import Image

from helpers import layout
from helpers.study.file import Study

DOCS = layout.ROOT / "docs"


def missing():
    """A package of the extra `book` that is not installed here."""
    for name in ("sphinx", "myst-nb", "pydata-sphinx-theme", "numpydoc", "jupyter-server-mathjax"):
        try:
            version(name)
        except PackageNotFoundError:
            return name
    return ""


def load(name, folder=DOCS):
    """One of the programs beside the pages or the figures."""
    spec = importlib.util.spec_from_file_location(f"book_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_glossary_has_at_least_twenty_terms_and_all_are_used_on_the_pages():
    body = (DOCS / "glossary.md").read_text().split("```{glossary}\n")[1].split("\n```")[0]
    words = [block.splitlines()[0] for block in body.split("\n\n")]
    assert len(words) == len(set(words)) >= 20
    pages = "".join(path.read_text() for path in DOCS.glob("*.md") if path.stem != "glossary")
    pages += "".join(path.read_text() for path in layout.NOTEBOOKS.glob("*.ipynb"))
    assert not [word for word in words if word.lower() not in pages.lower()]


def test_every_notebook_has_a_page_and_the_parameters_that_it_is_executed_with():
    from helpers.runner import graph

    tasks = load("execute").tasks("studies/book.toml")
    pages = (DOCS / "notebooks.md").read_text()
    assert [task.name for task in tasks] == [path.stem for path in sorted(layout.NOTEBOOKS.glob("0*.ipynb"))]
    assert all(f"\nnotebooks/{path.stem}\n" in pages for path in layout.NOTEBOOKS.glob("*.ipynb"))
    graph.check_parameters(tasks)
    # A page must not show a path of the machine on which it was made.
    assert str(layout.ROOT) not in str([task.parameters for task in tasks])
    assert Study.from_toml(layout.ROOT / "studies" / "book.toml").literals()["subjects"] == [1, 2]


@pytest.mark.skipif(bool(missing()), reason=f"no {missing()}: make book installs it")
def test_the_glossary_explains_plurals_without_naming_them():
    terms = load("extension").terms()
    assert terms["gaps"] == terms["slice gap"] == "gap"
    assert terms["remedies"] == "remedy"
    assert terms["planes of reconstruction"] == "plane of reconstruction"


@pytest.mark.skipif(bool(missing()), reason=f"no {missing()}: make book installs it")
def test_every_diagram_is_drawn():
    extension = load("extension")
    fence = re.compile(r"^```\{?mermaid\}?\n(.*?)^```", re.M | re.S)
    texts = [path.read_text() for path in DOCS.glob("*.md")]
    for path in layout.NOTEBOOKS.glob("*.ipynb"):
        texts += [cell.source for cell in nbformat.read(path, as_version=4).cells]
    wanted = {extension.diagram(source) for text in texts for source in fence.findall(text)}
    assert wanted and wanted == set(extension.DIAGRAMS.glob("*.svg"))


def test_the_film_has_a_picture_for_each_resolution(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.random((30, 40)) for _ in range(3)]
    shown = [
        ("3D images", {"acquired": images[0], "harmonized": images[1]}),
        ("slices of 5 mm", {"acquired": images[0], "harmonized": images[1], "with remedy": images[2]}),
    ]
    load("film", layout.FIGURES).film(shown, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.format, film.n_frames) == ("GIF", 2)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=f"no {missing()}: make book installs it")
def test_it_is_built_without_a_warning_and_asks_no_other_host(tmp_path):
    # Notebooks as they are, without outputs: to execute them is the business of test_notebooks.py.
    docs = shutil.copytree(
        DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("notebooks", "api", "_build")
    )
    shutil.copytree(layout.NOTEBOOKS, docs / "notebooks")
    # Executed, it has widgets, which must not be fetched either.
    meeting = nbformat.read(docs / "notebooks" / "07_lab_meeting.ipynb", as_version=4)
    state = {"state": {"0": {}}, "version_major": 2, "version_minor": 0}
    meeting.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
    nbformat.write(meeting, docs / "notebooks" / "07_lab_meeting.ipynb")
    for folder in ("figures", "studies", "src", "tests", "data"):
        (tmp_path / folder).symlink_to(layout.ROOT / folder)
    for file in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / file).symlink_to(layout.ROOT / file)
    html = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(docs), str(html)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (html / "_static" / "mathjax" / "MathJax.js").exists()
    # Notebooks name pages of the book, which are links there.
    assert 'href="../downstream.html"' in (html / "notebooks" / "07_lab_meeting.html").read_text()
    for page in html.rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"((?:https?:)?//[^\"]+)", text)
        fetched += re.findall(r"<link\b[^>]*\bhref=\"((?:https?:)?//[^\"]+)", text)
        assert not fetched, f"{page.relative_to(html)}: {fetched[:3]}"
