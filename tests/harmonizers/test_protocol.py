"""Harmonizers of one's own and the simple ones: what is accepted, what is refused, and what they compute."""

import re
import sys

import numpy as np
import pytest

from helpers import layout
from helpers.grid import SHAPE
from helpers.harmonizers import protocol, simple
from helpers.study import CONTRASTS, HARMONIZERS

PAGE = layout.ROOT / "docs" / "harmonizers.md"


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """Writes a module with the name of the test into a folder; returns how a study file names it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = request.node.name.partition("[")[0]

    def write(text, name="Own"):
        (tmp_path / f"{module}.py").write_text(text)
        return f"{tmp_path}/{module}:{name}"

    yield write
    sys.modules.pop(module, None)
    protocol.load.cache_clear()
    protocol._module.cache_clear()


def images(seed=0):
    """Three small brains in an empty field."""
    draw = np.random.default_rng(seed)
    made = {}
    for number, contrast in enumerate(CONTRASTS):
        made[contrast] = np.zeros(SHAPE, np.float32)
        made[contrast][90:110, 100:120, 90:110] = draw.gamma(3 + number, 30, (20, 20, 20))
    return made


def test_a_class_and_an_object_are_harmonizers(own):
    text = "class Own:\n    def harmonize(self, sources, targets):\n        return sources\nown = Own()\n"
    assert protocol.load(own(text)).harmonize("as it is", None) == "as it is"
    assert protocol.load(own(text, "own")).harmonize("as it is", None) == "as it is"


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("x = 1\n", "Own", "has no Own: accepted is what in it has a method harmonize"),
        (
            "class Owm:\n    def harmonize(self, sources, targets): ...\n",
            "Own",
            "has a method harmonize: Owm",
        ),
        (
            "class Own:\n    def harmonise(self, sources, targets): ...\n",
            "Own",
            "Own in .* has no method harmonize",
        ),
        ("class Own:\n    harmonize = 3\n", "Own", "Own in .* has no method harmonize"),
        ("class Own:\n    def __init__(self, weights): ...\n", "Own", r"Own\(\) fails with TypeError"),
        (
            "import nothing_of_that_name\n",
            "Own",
            "ModuleNotFoundError: No module named 'nothing_of_that_name'",
        ),
        ("class Own\n", "Own", "cannot import .*: SyntaxError"),
    ],
)
def test_what_is_no_harmonizer_is_refused_by_name(own, text, name, message):
    with pytest.raises(ValueError, match=message) as error:
        protocol.load(own(text, name))
    assert "harmonizer is '" in str(error.value)
    assert "accepted" in str(error.value) or "fails with" in str(error.value)


def test_a_module_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=r"nowhere:Own': cannot import nowhere from .*ModuleNotFoundError"):
        protocol.load(f"{tmp_path}/nowhere:Own")


def test_a_module_with_the_name_of_another_is_not_mistaken_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "colorsys.py").write_text("class Own:\n    def harmonize(self, sources, targets): ...\n")
    with pytest.raises(
        ValueError, match="Python has another module colorsys, .*: accepted is a name of its own"
    ):
        protocol.load(f"{tmp_path}/colorsys:Own")


def test_a_harmonizer_is_what_its_file_is_unless_it_has_a_version(own):
    text = "class Own: ...\n"
    first = protocol.identity(own(text))
    assert protocol.identity(own(text)) == first
    assert protocol.identity(own(text + "# changed\n")) != first
    assert set(first) == {"name", "sha256"}


def test_a_version_stands_for_the_file(own):
    text = '__version__ = "2.1"\nclass Own: ...\n'
    first = protocol.identity(own(text))
    assert first["version"] == "2.1"
    assert protocol.identity(own(text + "# changed\n")) == first


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda made: None, "harmonizer mine gave a NoneType: accepted is a dictionary"),
        (lambda made: {"T1w": made["T1w"]}, "gave no T2w, FLAIR, but T1w: accepted are all three"),
        (
            lambda made: {**made, "T2w": made["T2w"][:-1]},
            "T2w image of harmonizer mine is 191 x 224 x 192: accepted",
        ),
        (lambda made: {**made, "T2w": 3.0}, "T2w image of harmonizer mine is no array"),
        (lambda made: {**made, "FLAIR": made["FLAIR"] * np.nan}, "FLAIR image of harmonizer mine has .* NaN"),
        (lambda made: {**made, "FLAIR": made["FLAIR"] * 1e38 * 1e10}, "FLAIR image .* NaN or infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_cannot_be_an_image_of_the_study_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        protocol.check_images("mine", change(images()))


def test_each_simple_harmonizer_of_the_study_is_there():
    assert ("haca3", *simple.SIMPLE) == HARMONIZERS
    for name in simple.SIMPLE:
        assert isinstance(protocol.load(name), protocol.Harmonizer)


@pytest.mark.parametrize("name", simple.SIMPLE)
def test_a_simple_harmonizer_leaves_the_background_empty_and_its_sources_alone(name):
    sources, targets = images(1), images(2)
    for image in sources.values():
        image.setflags(write=False)
    made = protocol.check_images(name, protocol.load(name).harmonize(sources, targets))
    for contrast in CONTRASTS:
        assert not made[contrast][sources[contrast] == 0].any()


def test_a_simple_harmonizer_gives_a_brain_what_its_target_has():
    sources, targets = images(1), images(2)
    made = {name: tool.harmonize(sources, targets) for name, tool in simple.SIMPLE.items()}
    for contrast in CONTRASTS:
        brain = sources[contrast] != 0
        target = targets[contrast][targets[contrast] != 0]
        source = sources[contrast][brain]
        assert np.array_equal(made["none"][contrast], sources[contrast])
        values = made["zscore"][contrast][brain]
        assert (values.mean(), values.std()) == pytest.approx((target.mean(), target.std()), rel=1e-3)
        deciles = np.arange(10, 100, 10)
        for name, within in (("histogram", 0.01), ("nyul", 0.05)):
            values = made[name][contrast][brain]
            assert np.percentile(values, deciles) == pytest.approx(np.percentile(target, deciles), rel=within)
            assert np.all(np.diff(values[np.argsort(source)]) >= -1e-3)  # Darker stays darker.


def test_the_example_of_the_page_runs_as_it_stands(own):
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    tool = protocol.load(own(text, "Gamma"))
    sources, targets = images(1), images(2)
    made = protocol.check_images("gamma", tool.harmonize(sources, targets))
    for contrast in CONTRASTS:
        brightest = [np.percentile(each[contrast][each[contrast] > 0], 99) for each in (made, targets)]
        assert brightest[0] == pytest.approx(brightest[1], rel=1e-3)
