"""The panels without a browser: what a control changes changes, and what is refused is said."""

import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import haca3, layout, super_resolution
from helpers.acquisition import rf_pulse, slice_profile
from helpers.lab import live, widgets
from helpers.pipeline import finished
from helpers.study import CONTRASTS, EXPERIMENTS, Resolution
from helpers.study.file import Study


@pytest.fixture(scope="module")
def plane():
    rng = np.random.default_rng(0)
    brain = np.zeros((192, 192), bool)
    brain[30:160, 30:160] = True
    return np.kron(rng.random((24, 24)), np.ones((8, 8))) * brain, brain


@pytest.fixture
def panel(plane):
    return widgets.ProfilePanel(*plane, rf_pulse.Pulse(), Resolution(5, 1.5))


@pytest.mark.parametrize(
    "control, value, changed",
    [
        ("tb", 4.0, (0, 1)),
        ("thickness", 3.0, (0, 1)),
        ("gap", 0.0, (0, 1)),
        ("flip", 30.0, (0, 1)),
        ("ftype", "min", (0, 1)),
        ("ptype", "se", (0, 1)),
        ("part", "real", (0, 1)),
    ],
)
def test_every_control_changes_the_pictures(panel, control, value, changed):
    before = [bytes(picture.widget.value) for picture in panel.pictures]
    assert all(image.startswith(b"\x89PNG") for image in before)
    panel.controls[control].value = value
    after = [bytes(picture.widget.value) for picture in panel.pictures]
    assert [number for number in (0, 1) if before[number] != after[number]] == list(changed)


def test_a_spin_echo_gets_the_flip_angles_that_refocus(panel):
    flip = panel.controls["flip"]
    flip.value = 30
    panel.controls["ptype"].value = "se"
    assert (flip.min, flip.max, flip.value) == (90, 180, 180)
    panel.controls["ptype"].value = "ex"
    assert (flip.min, flip.max, flip.value) == (5, 90, 90)
    assert "rm-error" not in panel.numbers.value.split("</style>")[-1]


def test_the_numbers_of_the_panel_are_those_of_the_helpers(panel):
    panel.controls["tb"].value = 4.0
    assert f"{100 * slice_profile.cross_talk(5, 1.5, rf_pulse.Pulse(tb=4.0)):.1f} %" in panel.numbers.value
    offset, mxy, _ = rf_pulse.bloch(rf_pulse.Pulse(tb=4.0))
    assert f"{slice_profile.fwhm(offset, abs(mxy)) / 4:.3f}" in panel.numbers.value


def test_a_pulse_that_does_not_exist_is_said_and_the_pictures_stay(panel, monkeypatch):
    def impossible(pulse):
        raise ValueError("there is no such pulse: try a larger tb")

    before = [bytes(picture.widget.value) for picture in panel.pictures]
    monkeypatch.setattr(rf_pulse, "waveform", impossible)
    panel.controls["tb"].value = 3.0
    assert "there is no such pulse" in panel.numbers.value
    assert [bytes(picture.widget.value) for picture in panel.pictures] == before


@pytest.fixture(scope="module")
def room():
    """A subject, the shipped network and its targets."""
    rng = np.random.default_rng(1)
    x, y, z = np.ogrid[:192, :224, :192]
    brain = (x - 96) ** 2 + (y - 112) ** 2 + (z - 88) ** 2 < 60**2
    images = {
        c: 300
        * brain
        * np.kron(rng.random((12, 14, 12), np.float32) + 0.5, np.ones((16, 16, 16), np.float32))
        for c in CONTRASTS
    }
    model = haca3.load(layout.MODELS / "harmonizer-small.pt", device="cpu")
    return (
        live.scene(images, brain),
        model,
        {contrast: model.target(image) for contrast, image in images.items()},
    )


def test_the_explorer_follows_its_controls(room):
    scene, model, targets = room
    explorer = widgets.Explorer([1], lambda subject: scene, model, targets, Resolution(5, 1.5))
    seen = {(bytes(explorer.picture.widget.value), explorer.scores.value)}
    for control, value in (
        ("thickness", 3.0),
        ("experiment", "1b"),
        ("contrast", "FLAIR"),
        ("up", 70),
    ):
        explorer.controls[control].value = value
        seen.add((bytes(explorer.picture.widget.value), explorer.scores.value))
    assert len(seen) == 5
    assert "3||1.5 mm: a slice every <b>4.5 mm</b>" in explorer.scores.value


def test_the_explorer_switches_remedies_on_where_they_can_be_had(room):
    scene, model, targets = room
    network = super_resolution.Network(7, 4)
    for number, weights in enumerate(network.requires_grad_(False).parameters()):
        weights += 0.01 * number  # not nothing
    resolver = super_resolution.SuperResolver(network, Resolution(5, 1.5), rf_pulse.Pulse(), (1.0, 1.0))
    explorer = widgets.Explorer([1], lambda subject: scene, model, targets, Resolution(5, 1.5), resolver)
    resolve, fuse = (explorer.controls[name] for name in ("super_resolution", "fusion"))
    assert fuse.disabled and not resolve.disabled
    assert "fusion: all are sliced alike" in explorer.scores.value
    seen = [bytes(explorer.picture.widget.value)]
    for control, value in ((resolve, True), (explorer.controls["experiment"], "3"), (fuse, True)):
        control.value = value
        seen.append(bytes(explorer.picture.widget.value))
    assert len(set(seen)) == 4 and not fuse.disabled
    assert "as acquired <b>3D</b>" in explorer.scores.value
    explorer.controls["contrast"].value = "T2w"
    assert "super-resolved <b>" in explorer.scores.value
    explorer.controls["gap"].value = 1.0
    assert resolve.disabled and "super-resolution: for 5||1.5 mm only" in explorer.scores.value
    assert "as acquired <b>" in explorer.scores.value


def test_every_third_guess_is_about_fusion(room):
    scene, model, targets = room
    guess = widgets.Guess(lambda: scene, model, targets)
    guess.number = 2
    guess.ask()
    assert guess.says.value.count("fused by resolution") == 1
    guess.buttons[0].click()
    assert "dB" in guess.says.value


def test_a_guess_is_judged_by_what_is_measured(room):
    scene, model, targets = room
    guess = widgets.Guess(lambda: scene, model, targets)
    hidden = bytes(guess.picture.widget.value)
    assert "dB" not in guess.says.value and guess.next.disabled
    guess.buttons[0].click()
    assert bytes(guess.picture.widget.value) != hidden
    a, b = (
        float(part.split(" dB")[0].split()[-1])
        for part in guess.says.value.split("Harmonized:")[1].split(",")[:2]
    )
    assert guess.right == (a > b)
    assert all(button.disabled for button in guess.buttons)
    guess.next.click()
    assert guess.number == 2 and "dB" not in guess.says.value and not guess.buttons[0].disabled


def test_a_handout_tells_the_answer_and_counts_no_guess(room):
    scene, model, targets = room
    guess = widgets.Guess(lambda: scene, model, targets)
    guess.still()
    assert "dB" in guess.says.value and "the room was right" not in guess.says.value
    assert guess.right == 0


def test_table_1_shows_the_ten_subjects_where_no_study_was_run(tmp_path):
    table = widgets.TableOne(finished.last_scores(Study(output_dir=str(tmp_path / "mine"))))
    assert "“ten”, 10 subjects (figure 3)" in table.says.value
    assert bytes(table.figure.value).startswith(b"\x89PNG")


def test_table_1_shows_the_last_study_that_ran_all_of_it(tmp_path):
    for name, experiments in (("first", EXPERIMENTS), ("second", EXPERIMENTS), ("part", ["1a"])):
        (tmp_path / name / "tables").mkdir(parents=True)
        pd.DataFrame({"experiment": list(experiments), "resolution": "3||0"}).to_csv(
            tmp_path / name / "tables" / "scores.csv", index=False
        )
    os.utime(tmp_path / "first" / "tables" / "scores.csv", (0, 0))
    name, table = finished.last_scores(Study(output_dir=str(tmp_path / "mine")))
    assert name == "second" and table.experiment.tolist() == list(EXPERIMENTS)


def test_table_1_says_which_experiments_a_study_left_out():
    table = widgets.TableOne(("mine", pd.DataFrame({"experiment": ["3"], "subject": [1]})))
    assert "“mine” did not run this experiment" in table.says.value


def test_lesions_are_a_panel_and_no_output_of_their_own(monkeypatch):
    image = np.ones((20, 20))
    spot = np.zeros((20, 20), bool)
    spot[5:8, 5:8] = True
    panel = {"image": image, "white": 1.0, "found": spot, "missed": spot}
    panels = 3 * [panel | {"title": "3D scans", "says": "2 lesions"}]
    monkeypatch.setattr(live, "lesion_panels", lambda *how: panels)
    before = plt.get_fignums()
    lesions = widgets.Lesions(lambda: None, None, {}, [])
    assert plt.get_fignums() == before
    assert "Green" in lesions.says.value and bytes(lesions.figure.value).startswith(b"\x89PNG")
