"""Slice profiles: what the physics demands, then numbers that are known, then faults."""

import subprocess
import sys

import numpy as np
import pytest

from helpers.acquisition import rf_pulse, slice_profile
from helpers.acquisition.rf_pulse import Pulse

# Pulses of every kind; the first is the study's.
DESIGNS = [
    {},
    {"tb": 4},
    {"tb": 2, "ptype": "se"},
    {"tb": 8, "ftype": "pm"},
    {"ftype": "ms"},
    {"ftype": "min"},
    {"tb": 4, "n": 64},
]


def rotate_by_hand(rf, position):
    """Bloch equations as rotations of a magnetization vector about the effective field, sample by sample."""
    magnetization = np.array([0.0, 0.0, 1.0])
    for angle in rf:
        field = np.array([angle, 0, 2 * np.pi * position / len(rf)])
        turn = np.linalg.norm(field)
        unit = field / turn
        magnetization = (
            magnetization * np.cos(turn)
            + np.cross(unit, magnetization) * np.sin(turn)
            + unit * (unit @ magnetization) * (1 - np.cos(turn))
        )
    return magnetization


# --- Physics


@pytest.mark.parametrize("tb", [4, 16])
def test_an_excitation_agrees_with_magnetization_rotated_by_hand(tb):
    position, mxy, mz = rf_pulse.bloch(Pulse(tb=tb))
    for index in len(position) // 2 + np.array([0, 5, 40, 16 * tb - 3, 16 * tb, 16 * tb + 9, 40 * tb]):
        x, y, z = rotate_by_hand(rf_pulse.waveform(Pulse(tb=tb)), position[index] + 1e-12)
        assert np.hypot(x, y) == pytest.approx(abs(mxy[index]), abs=1e-6)
        assert z == pytest.approx(mz[index], abs=1e-6)


@pytest.mark.parametrize("ftype", ["ls", "min"])
def test_only_a_linear_phase_is_taken_out(ftype):
    position, mxy, _ = rf_pulse.bloch(Pulse(tb=8, ftype=ftype))
    indices = len(position) // 2 + np.arange(-90, 91, 30)
    by_hand = [
        rotate_by_hand(rf_pulse.waveform(Pulse(tb=8, ftype=ftype)), position[index] + 1e-12)
        for index in indices
    ]
    turned = np.array([x + 1j * y for x, y, _ in by_hand]) / mxy[indices]
    # Equal steps in position, equal steps in phase.
    np.testing.assert_allclose(turned[1:-1] ** 2 / (turned[:-2] * turned[2:]), 1, atol=1e-5)


@pytest.mark.parametrize("design", [{}, {"tb": 3, "ftype": "pm"}, {"tb": 12, "ftype": "max"}])
def test_an_excitation_only_turns_the_magnetization(design):
    _, mxy, mz = rf_pulse.bloch(Pulse(**design))
    np.testing.assert_allclose(np.abs(mxy) ** 2 + mz**2, 1, atol=1e-9)


@pytest.mark.parametrize("flip_angle_deg", [1, 10, 30, 60, 90])
@pytest.mark.parametrize(("tb", "ftype"), [(4, "ls"), (16, "ls"), (8, "pm"), (16, "ms")])
def test_the_middle_of_a_slice_is_turned_by_the_flip_angle(flip_angle_deg, tb, ftype):
    pulse = Pulse(tb=tb, ftype=ftype, flip_angle_deg=flip_angle_deg)
    x, y, z = rotate_by_hand(rf_pulse.waveform(pulse), 1e-12)
    _, mxy, mz = rf_pulse.bloch(pulse)
    middle = len(mxy) // 2
    assert abs(mxy[middle]) == pytest.approx(np.hypot(x, y), abs=1e-6)
    assert mz[middle] == pytest.approx(z, abs=1e-6)
    # To the ripple of 1 % that the design allows. At 90 degrees, where the signal does not see it, it allows
    # the angle more.
    flip, allowed = np.deg2rad(flip_angle_deg), 0.2 if flip_angle_deg == 90 else 0.03
    assert np.hypot(x, y) == pytest.approx(np.sin(flip), rel=0.02)
    assert z == pytest.approx(np.cos(flip), abs=allowed * np.sin(flip))


@pytest.mark.parametrize("flip_angle_deg", [90, 120, 150, 180])
def test_a_refocusing_pulse_refocuses_by_its_flip_angle(flip_angle_deg):
    pulse = Pulse(ptype="se", flip_angle_deg=flip_angle_deg)
    _, efficiency, mz = rf_pulse.bloch(pulse)
    flip, middle = np.deg2rad(flip_angle_deg), len(mz) // 2
    assert abs(efficiency[middle]) == pytest.approx(np.sin(flip / 2) ** 2, rel=0.02)
    assert mz[middle] == pytest.approx(np.cos(flip), abs=0.03)
    assert rotate_by_hand(rf_pulse.waveform(pulse), 1e-12)[2] == pytest.approx(mz[middle], abs=1e-6)


@pytest.mark.parametrize("flip_angle_deg", [5, 30, 60, 90])
def test_the_ripple_is_a_share_of_the_signal_of_the_slice_whatever_the_flip_angle(flip_angle_deg):
    position, weight = slice_profile.profile(1, Pulse(tb=8, ftype="pm", flip_angle_deg=flip_angle_deg))
    weight = weight / np.sin(np.deg2rad(flip_angle_deg))
    inside, outside = weight[np.abs(position) < 0.35], weight[np.abs(position) > 0.7]
    assert outside.max() < 0.015
    assert np.abs(inside - 1).max() < 0.02


@pytest.mark.parametrize(("ptype", "flip_angle_deg"), [("ex", 90), ("se", 180)])
@pytest.mark.parametrize("ftype", rf_pulse.FILTER_TYPES)
def test_the_usual_flip_angles_give_the_pulses_that_sigpy_designs(ptype, flip_angle_deg, ftype):
    from sigpy.mri.rf import slr

    pulse = Pulse(tb=4, ptype=ptype, ftype=ftype)
    assert pulse == Pulse(tb=4, ptype=ptype, ftype=ftype, flip_angle_deg=flip_angle_deg)
    expected = slr.dzrf(128, 4, ptype, ftype, 0.01, 0.01).real
    # Minimum phase takes the logarithm of a filter that is all but 0 in its stop band: rounding grows there.
    np.testing.assert_allclose(
        rf_pulse.waveform(pulse), expected, atol=1e-12 if ftype not in ("min", "max") else 1e-7
    )


def test_the_samples_of_the_pulse_add_up_to_its_flip_angle():
    assert np.sum(rf_pulse.waveform()) == pytest.approx(np.pi / 2, abs=0.02)


def test_a_refocusing_pulse_refocuses_its_slice_and_nothing_else():
    position, efficiency, mz = rf_pulse.bloch(Pulse(ptype="se"))
    weight = np.abs(efficiency)
    assert weight.max() <= 1 + 1e-9
    assert weight[np.abs(position) < 6].min() > 0.97
    assert weight[np.abs(position) > 10].max() < 0.03
    assert mz[len(position) // 2] < -0.96


@pytest.mark.parametrize("design", DESIGNS)
def test_the_measured_width_is_the_thickness(design):
    assert slice_profile.fwhm(*slice_profile.profile(4.2, Pulse(**design))) == pytest.approx(4.2, abs=1e-9)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_profile_is_symmetric(design):
    _, weight = slice_profile.profile(3, Pulse(**design))
    np.testing.assert_allclose(weight, weight[::-1], atol=1e-6)


def test_rephasing_leaves_no_phase_in_the_slice_and_the_real_part_keeps_the_sign_of_the_ripple():
    position, magnitude = slice_profile.profile(5)
    _, real = slice_profile.profile(5, Pulse(part="real"))
    inside = np.abs(position) < 2
    np.testing.assert_allclose(real[inside], magnitude[inside], atol=0.005)
    assert magnitude.min() >= 0
    assert -0.03 < real.min() < -0.005


def test_a_smaller_ripple_asked_for_is_a_smaller_ripple_got():
    def ripple(d2):
        position, weight = slice_profile.profile(1, Pulse(tb=8, d1=0.01, d2=d2, ftype="pm"))
        return weight[np.abs(position) > 0.8].max()

    assert ripple(0.001) < ripple(0.01) < ripple(0.05)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("thickness", "voxel"), [(3, 1), (5, 1), (4, 0.8), (2.4, 0.8), (0.3, 1), (6.3, 0.7)])
def test_taps_sum_to_one_and_are_symmetric(design, thickness, voxel):
    taps = slice_profile.taps(thickness, voxel, Pulse(**design))
    assert taps.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(taps, taps[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("thickness", "voxel", "radius"), [(3, 1, 4), (4.5, 1, 6), (2.1, 0.7, 4), (5, 0.8, 8)]
)
def test_taps_reach_one_voxel_beyond_the_thickness(thickness, voxel, radius):
    assert len(slice_profile.taps(thickness, voxel)) == 2 * radius + 1


def test_taps_are_an_integral_so_five_small_voxels_weigh_as_much_as_the_big_one_that_they_fill():
    small, big = slice_profile.taps(4, 0.2), slice_profile.taps(4, 1)
    middle = len(small) // 2
    filled = np.array([small[middle + 5 * i - 2 : middle + 5 * i + 3].sum() for i in range(-3, 4)])
    np.testing.assert_allclose(filled / filled.sum(), big[2:-2] / big[2:-2].sum(), atol=2e-4)


def test_only_the_ratio_of_thickness_to_voxel_counts():
    np.testing.assert_allclose(slice_profile.taps(4, 0.8), slice_profile.taps(5, 1), atol=1e-12)


def test_a_slice_far_thinner_than_a_voxel_sees_one_voxel():
    taps = slice_profile.taps(0.05, 1)
    assert taps[len(taps) // 2] > 0.99


def test_the_transfer_function_of_a_box_is_a_sinc():
    position = np.linspace(-2, 2, 4001)
    frequency = np.array([0, 0.1, 0.25, 0.4])
    got = slice_profile.transfer_function(frequency, position, np.ones(4001))
    np.testing.assert_allclose(got, np.sinc(4 * frequency), atol=1e-3)


@pytest.mark.parametrize("compat", [None, "radifox"])
def test_the_transfer_function_of_a_slice_is_real_and_one_at_frequency_zero(compat):
    taps = slice_profile.taps(4, 1, Pulse(compat=compat))
    position = np.arange(len(taps)) - len(taps) // 2
    got = slice_profile.transfer_function(np.linspace(0, 0.5, 20), position, taps)
    assert got[0] == pytest.approx(1)
    assert np.abs(got.imag).max() < 1e-9


def test_a_gap_lowers_the_cross_talk_and_thickness_alone_does_not_matter():
    assert slice_profile.cross_talk(5, 0) > slice_profile.cross_talk(5, 0.5) > slice_profile.cross_talk(5, 1)
    assert slice_profile.cross_talk(5, 1) == pytest.approx(slice_profile.cross_talk(3, 0.6), rel=1e-6)


# --- Known numbers


@pytest.mark.parametrize(("tb", "factor"), [(16, 1.007), (8, 1.016), (4, 1.036), (2, 1.083)])
def test_width_of_the_simulated_profile_in_units_of_the_time_bandwidth_product(tb, factor):
    position, mxy, _ = rf_pulse.bloch(Pulse(tb=tb))
    assert slice_profile.fwhm(position, np.abs(mxy)) / tb == pytest.approx(factor, abs=6e-4)


@pytest.mark.parametrize(("tb", "width"), [(16, 0.067), (4, 0.25)])
def test_edge_width_of_the_profile(tb, width):
    position, weight = slice_profile.profile(1, Pulse(tb=tb))
    right = slice(len(position) // 2, None)
    crossings = [position[right][np.flatnonzero(weight[right] >= level)[-1]] for level in (0.1, 0.9)]
    assert crossings[0] - crossings[1] == pytest.approx(width, abs=0.01)


@pytest.mark.parametrize(
    ("thickness", "half"),
    [(3, [0.331, 0.321, 0.012]), (4, [0.248, 0.248, 0.125, 0.001]), (5, [0.199, 0.199, 0.188, 0.012])],
)
def test_half_kernels_at_one_millimetre(thickness, half):
    taps = slice_profile.taps(thickness, 1)
    np.testing.assert_allclose(taps[len(taps) // 2 :][: len(half)], half, atol=6e-4)


@pytest.mark.parametrize(
    ("thickness", "half"),
    [
        (3, [0.3321, 0.3318, 0.0011, 0.001]),
        (4, [0.2733, 0.2733, 0.0878, 0.001, 0.0012]),
        (5, [0.1989, 0.199, 0.1987, 0.0014, 0.001, 0.0005]),
        (4.5, [0.2008, 0.2008, 0.1954, 0.0022, 0.0011]),
    ],
)
def test_radifox_half_kernels_are_those_of_radifox_utils_1_0_7(thickness, half):
    taps = slice_profile.taps(thickness, 1, Pulse(compat="radifox"))
    assert len(taps) == 2 * len(half) - 1
    np.testing.assert_allclose(taps[len(taps) // 2 :], half, atol=1.5e-4)


def test_a_radifox_slice_as_thick_as_a_voxel_is_the_voxel():
    np.testing.assert_array_equal(slice_profile.taps(1, 1, Pulse(compat="radifox")), [1])


@pytest.mark.parametrize(
    ("tb", "touching", "gap_of_a_fifth"), [(2, 15, 3.3), (4, 9, 1.3), (8, 5, 0.8), (16, 3, 0.5)]
)
def test_cross_talk_in_percent(tb, touching, gap_of_a_fifth):
    assert 100 * slice_profile.cross_talk(5, 0, Pulse(tb=tb)) == pytest.approx(touching, abs=0.6)
    assert 100 * slice_profile.cross_talk(5, 1, Pulse(tb=tb)) == pytest.approx(gap_of_a_fifth, abs=0.15)


# --- Once, and only where it is used


def test_a_pulse_is_designed_once_and_nobody_can_change_it():
    assert rf_pulse.waveform(Pulse(tb=6)) is rf_pulse.waveform(Pulse(tb=6.0))
    for array in (rf_pulse.waveform(), *rf_pulse.bloch(), slice_profile.taps(3, 1)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_importing_the_module_does_not_import_sigpy():
    code = (
        "import sys, helpers.acquisition.degradation; sys.exit(any(m in sys.modules for m in ('sigpy', "
        "'ants', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Faults


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ({"tb": 0}, ["tb is 0", "n/4 = 32"]),
        ({"tb": 64}, ["tb is 64", "n/4 = 32"]),
        ({"tb": float("nan")}, ["tb is nan"]),
        ({"tb": "wide"}, ["tb is 'wide'"]),
        ({"tb": [4]}, ["tb is [4]"]),
        ({"n": 127}, ["n is 127", "even"]),
        ({"n": 128.0}, ["n is 128.0", "even"]),
        ({"ptype": "inv"}, ["ptype is 'inv'", "ex, se"]),
        ({"ftype": "sinc"}, ["ftype is 'sinc'", "ls, pm, ms, min, max"]),
        ({"d1": 0}, ["d1 is 0", "between 0 and 1"]),
        ({"d2": 1.5}, ["d2 is 1.5", "between 0 and 1"]),
        ({"part": "imaginary"}, ["part is 'imaginary'", "magnitude, real"]),
        ({"compat": "spm"}, ["compat is 'spm'", "radifox"]),
        ({"tb": 1}, ["no ex pulse with tb 1", "larger tb"]),
        (
            {"tb": 1, "ptype": "se", "ftype": "ms"},
            ["does not select a slice", "refocuses 26%", "90% or more", "larger tb"],
        ),
        (
            {"tb": 2, "ptype": "se", "ftype": "ms"},
            ["does not select a slice", "refocuses 71%", "90% or more", "larger tb"],
        ),
        ({"flip_angle_deg": 0}, ["flip_angle_deg is 0", "ptype ex are 0.1 to 90 degrees"]),
        ({"flip_angle_deg": 91}, ["flip_angle_deg is 91", "ptype ex are 0.1 to 90 degrees"]),
        ({"flip_angle_deg": 60, "ptype": "se"}, ["flip_angle_deg is 60", "ptype se are 90 to 180 degrees"]),
        ({"flip_angle_deg": float("nan")}, ["flip_angle_deg is nan"]),
        ({"flip_angle_deg": "90"}, ["flip_angle_deg is '90'"]),
    ],
)
def test_an_impossible_design_is_refused_in_one_line(design, words):
    with pytest.raises(ValueError) as caught:
        slice_profile.profile(4, Pulse(**design))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_what_a_pulse_does_not_have_is_refused():
    with pytest.raises(TypeError, match="tbw"):
        Pulse(tbw=4)


@pytest.mark.parametrize("bad", [0, -1, float("inf"), "4", None])
def test_an_impossible_length_is_refused(bad):
    with pytest.raises(ValueError, match="thickness_mm is .*: accepted is a number of mm greater than 0"):
        slice_profile.taps(bad, 1)
    with pytest.raises(ValueError, match="voxel_mm is .*: accepted is a number of mm greater than 0"):
        slice_profile.taps(4, bad)


def test_a_radifox_slice_thinner_than_a_voxel_is_refused():
    with pytest.raises(
        ValueError, match="thickness_mm is 0.5: accepted with compat radifox is 1 mm, a voxel, or more"
    ):
        slice_profile.taps(0.5, 1, Pulse(compat="radifox"))


def test_a_profile_that_never_falls_has_no_width():
    with pytest.raises(ValueError, match="still above half its maximum"):
        slice_profile.fwhm(np.arange(3.0), np.array([0.0, 1, 1]))
