"""The panels of the lab meeting without a browser: what a control changes, and what is refused."""

import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import haca3, layout, super_resolution
from helpers.acquisition import rf_pulse
from helpers.lab import live, meeting
from helpers.pipeline import finished
from helpers.study import CONTRASTS, EXPERIMENTS, Resolution
from helpers.study.file import Study
from helpers.super_resolution.network import Network


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
    explorer = meeting.Explorer([1], lambda subject: scene, model, targets, Resolution(5, 1.5))
    seen = {(bytes(explorer.picture.widget.value), explorer.scores.value)}
    for control, value in (("thickness", 3.0), ("experiment", "1b"), ("contrast", "FLAIR"), ("up", 70)):
        explorer.controls[control].value = value
        seen.add((bytes(explorer.picture.widget.value), explorer.scores.value))
    assert len(seen) == 5
    assert "3||1.5 mm: a slice every <b>4.5 mm</b>" in explorer.scores.value


def test_the_explorer_switches_remedies_on_where_they_can_be_had(room):
    scene, model, targets = room
    network = Network(7, 4)
    for number, weights in enumerate(network.requires_grad_(False).parameters()):
        weights += 0.01 * number  # not nothing
    resolver = super_resolution.SuperResolver(network, Resolution(5, 1.5), rf_pulse.Pulse(), (1.0, 1.0))
    explorer = meeting.Explorer([1], lambda subject: scene, model, targets, Resolution(5, 1.5), resolver)
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
    guess = meeting.Guess(lambda: scene, model, targets)
    guess.number = 2
    guess.ask()
    assert guess.says.value.count("fused by resolution") == 1
    guess.buttons[0].click()
    assert "dB" in guess.says.value


def test_a_guess_is_judged_by_what_is_measured(room):
    scene, model, targets = room
    guess = meeting.Guess(lambda: scene, model, targets)
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
    guess = meeting.Guess(lambda: scene, model, targets)
    guess.still()
    assert "dB" in guess.says.value and "the room was right" not in guess.says.value
    assert guess.right == 0


def test_table_1_shows_the_ten_subjects_where_no_study_was_run(tmp_path):
    table = meeting.TableOne(finished.last_scores(Study(output_dir=str(tmp_path / "mine"))))
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
    table = meeting.TableOne(("mine", pd.DataFrame({"experiment": ["3"], "subject": [1]})))
    assert "“mine” did not run this experiment" in table.says.value


def test_lesions_are_a_panel_and_no_output_of_their_own(monkeypatch):
    image = np.ones((20, 20))
    spot = np.zeros((20, 20), bool)
    spot[5:8, 5:8] = True
    panel = {"image": image, "white": 1.0, "found": spot, "missed": spot}
    panels = 3 * [panel | {"title": "3D scans", "says": "2 lesions"}]
    monkeypatch.setattr(live, "lesion_panels", lambda *how: panels)
    before = plt.get_fignums()
    lesions = meeting.Lesions(lambda: None, None, {}, [])
    assert plt.get_fignums() == before
    assert "Green" in lesions.says.value and bytes(lesions.figure.value).startswith(b"\x89PNG")


def test_a_figure_of_several_experiments_is_shown_once_in_a_handout(monkeypatch, tmp_path):
    table = meeting.TableOne(finished.last_scores(Study(output_dir=str(tmp_path))))
    monkeypatch.setattr(meeting, "png", lambda figure, dpi: figure.axes[0].get_title().encode())
    shown = []
    monkeypatch.setattr(meeting, "show_still", lambda picture, *words: shown.append((picture, len(words))))
    table.experiment.value = "6"  # so that the first one is drawn anew
    table.still()
    assert shown[0] == (b"Experiment 1a", 3)
    assert [number for _, number in shown[1:]] == [1] * 5
