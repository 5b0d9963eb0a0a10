"""The panel of notebook 01 without a browser: what a control changes, and what is refused."""

import numpy as np
import pytest

from helpers.acquisition import rf_pulse, slice_profile
from helpers.lab import profile_panel
from helpers.study import Resolution


@pytest.fixture(scope="module")
def plane():
    rng = np.random.default_rng(0)
    brain = np.zeros((192, 192), bool)
    brain[30:160, 30:160] = True
    return np.kron(rng.random((24, 24)), np.ones((8, 8))) * brain, brain


@pytest.fixture
def panel(plane):
    return profile_panel.ProfilePanel(*plane, rf_pulse.Pulse(), Resolution(5, 1.5))


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
