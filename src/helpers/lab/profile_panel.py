"""The panel of notebook 01: from the pulse to the brain, with sliders."""

import ipywidgets as w
import numpy as np

from helpers.acquisition import rf_pulse, slice_profile
from helpers.acquisition.rf_pulse import Pulse
from helpers.drawing import BLUE, GREEN, ORANGE, VERMILLION
from helpers.lab import live
from helpers.lab.widgets import Picture, choice, slider, text
from helpers.study import Resolution

_FILTERS = {
    "ls": "least squares",
    "pm": "equiripple",
    "ms": "windowed sinc",
    "min": "minimum phase",
    "max": "maximum phase",
}


#: Flip angles that the sliders offer, in degrees.
_FLIP_DEG = {"ex": (5, 90), "se": (90, 180)}


class ProfilePanel:
    """From the pulse to the brain, with sliders: everything that notebook 01 shows, redrawn as they move.

    Parameters
    ----------
    plane : ndarray, shape (rows, n)
        Coronal slice of a 3D image, 1 mm pixels, seen upright; slices are stacked along its rows.
    brain : ndarray of bool
        Of the same slice.
    pulse : Pulse
        To begin with.
    resolution : Resolution
        Slices to begin with.
    """

    def __init__(self, plane: np.ndarray, brain: np.ndarray, pulse: Pulse, resolution: Resolution):
        self.plane, self.brain = plane, brain
        self.controls = {
            "tb": slider("time-bandwidth", pulse.tb, 2, 24, 0.5),
            "d1": slider("ripple inside", pulse.d1, 0.001, 0.1, 0.001),
            "d2": slider("ripple outside", pulse.d2, 0.001, 0.1, 0.001),
            "thickness": slider("thickness (mm)", resolution.thickness_mm, 1, 10, 0.1),
            "gap": slider("gap (mm)", resolution.gap_mm, 0, 5, 0.1),
            "flip": slider("flip angle (°)", pulse.flip_angle_deg, *_FLIP_DEG[pulse.ptype], 1.0),
            "ftype": choice("filter", [(_FILTERS[f], f) for f in rf_pulse.FILTER_TYPES], pulse.ftype),
            "ptype": w.ToggleButtons(options=[("excitation", "ex"), ("spin echo", "se")], value=pulse.ptype),
            "part": w.ToggleButtons(options=list(rf_pulse.PARTS), value=pulse.part),
        }
        for toggle in (self.controls["ptype"], self.controls["part"]):
            toggle.style.button_width = "155px"
        self.numbers = w.HTML()
        self.pictures = [Picture(15, 2.9, self._first_row), Picture(15, 3.5, self._second_row)]
        self.controls["ptype"].observe(self._change_type, "value")
        for control in self.controls.values():
            control.observe(self.update, "value")
        self.update()
        names = ["tb", "flip", "d1", "d2", "ftype"], ["thickness", "gap", "ptype", "part"]
        columns = [w.VBox([self.controls[name] for name in column]) for column in names]
        self.widget = w.VBox(
            [
                w.HBox([*columns, self.numbers], layout=w.Layout(align_items="center", grid_gap="24px")),
                *(picture.widget for picture in self.pictures),
            ]
        )

    def _first_row(self, figure):
        b1, profile, train, talk = figure.subplots(1, 4)
        figure.subplots_adjust(left=0.052, right=0.99, bottom=0.2, top=0.88, wspace=0.24)
        b1.set(
            title="pulse",
            xlabel="time (durations of the pulse)",
            ylabel="B1 / peak",
            xlim=(0, 1),
            ylim=(-0.35, 1.08),
        )
        profile.set(
            title="what it excites",
            xlabel="position (slice thicknesses)",
            xlim=(-1.6, 1.6),
            ylim=(-1.6, 1.15),
        )
        train.set(
            title="the slice and its neighbours", xlabel="position (mm)", xlim=(-16, 16), ylim=(-0.25, 1.15)
        )
        talk.set(
            title="from the neighbours' slabs",
            xlabel="gap (mm)",
            ylabel="% of the signal",
            xlim=(0, 5),
            ylim=(-2, 20),
        )
        for axes in (b1, profile, train, talk):
            axes.axhline(0, color="0.85", lw=1)
        (self.b1,) = b1.plot([], [], color=BLUE, lw=2)
        (self.mz,) = profile.plot([], [], color="0.55", lw=1.3, label="Mz after")
        (self.phase,) = profile.plot([], [], color=GREEN, lw=1.5, ls="--", label="phase / 180°")
        (self.mxy,) = profile.plot([], [], color=BLUE, lw=2.2, label="|Mxy|")
        (self.width,) = profile.plot([], [], color=VERMILLION, lw=1.6, marker="|", ms=9, label="FWHM")
        profile.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
        self.slices = [train.plot([], [], color=colour, lw=2)[0] for colour in (VERMILLION, VERMILLION, BLUE)]
        (self.talk,) = talk.plot([], [], color=BLUE, lw=2)
        (self.here,) = talk.plot([], [], color=VERMILLION, marker="o", ms=8, ls="", clip_on=False)
        return [self.b1, self.mz, self.phase, self.mxy, self.width, *self.slices, self.talk, self.here]

    def _second_row(self, figure):
        weights, transfer, brain, error = figure.subplots(1, 4, width_ratios=(1, 1, 1.05, 1.05))
        figure.subplots_adjust(left=0.052, right=0.985, bottom=0.17, top=0.9, wspace=0.2)
        weights.set(
            title="weights of 1 mm voxels × thickness",
            xlabel="position (mm)",
            xlim=(-8, 8),
            ylim=(-0.08, 1.5),
        )
        styles = {
            "simulated": (ORANGE, "o", "-"),
            "box": (BLUE, "s", ":"),
            "Gaussian": (GREEN, "^", ":"),
            "radifox": (VERMILLION, "D", ":"),
        }
        self.weights = {
            n: weights.plot([], [], color=c, marker=m, ls=ls, lw=1.5, ms=4, label=n)[0]
            for n, (c, m, ls) in styles.items()
        }
        weights.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
        transfer.set(
            title="what is left of each frequency",
            xlabel="cycles/mm, through-plane",
            xlim=(0, 0.5),
            ylim=(-0.4, 1.1),
        )
        transfer.axhline(0, color="0.85", lw=1)
        (self.transfer,) = transfer.plot([], [], color=BLUE, lw=2)
        (self.nyquist,) = transfer.plot([], [], color="0.35", ls=":", lw=1.6)
        self.nyquist_text = transfer.text(0, 1.05, "", color="0.35", fontsize=9, va="top")
        vmax = np.percentile(self.plane, 99.5)
        rows, columns = (np.flatnonzero(self.brain.any(axis=axis)) for axis in (1, 0))
        self.image = brain.imshow(self.plane, cmap="gray", vmin=0, vmax=vmax, interpolation="nearest")
        self.error = error.imshow(
            self.plane, cmap="PuOr_r", vmin=-vmax / 3, vmax=vmax / 3, interpolation="nearest"
        )
        for axes, title in (
            (brain, "axial slices, interpolated back"),
            (error, "its error, contrast times three"),
        ):
            axes.set(
                title=title, xlim=(columns[0] - 8.5, columns[-1] + 8.5), ylim=(rows[-1] + 8.5, rows[0] - 8.5)
            )
            axes.axis("off")
        for axes in (weights, transfer, brain, error):
            axes.title.set_fontsize(11)
        return [
            *self.weights.values(),
            self.transfer,
            self.nyquist,
            self.nyquist_text,
            self.image,
            self.error,
        ]

    def _change_type(self, change) -> None:
        """Give the flip angle the range of the new type of pulse, and its usual value."""
        low, high = _FLIP_DEG[change["new"]]
        flip = self.controls["flip"]
        with flip.hold_trait_notifications():
            flip.min, flip.max, flip.value = low, high, Pulse(ptype=change["new"]).flip_angle_deg

    def update(self, _change=None) -> None:
        """Follow the controls; what cannot be designed is said in place of the numbers, and the pictures
        stay."""
        value = {name: control.value for name, control in self.controls.items()}
        design = {name: value[name] for name in ("tb", "d1", "d2", "ftype", "ptype", "part")}
        try:
            resolution = Resolution(round(value["thickness"], 2), round(value["gap"], 2))
            pulse = Pulse(**design, flip_angle_deg=value["flip"])
            rf = rf_pulse.waveform(pulse)
            position_mm, weight = slice_profile.profile(resolution.thickness_mm, pulse)
            weights = live.kernels(resolution.thickness_mm, pulse)
        except ValueError as error:
            self.numbers.value = text([f"<span class='rm-error'>{error}</span>"])
            return
        width, talk = self._draw_pulse(rf, position_mm, weight, resolution, pulse)
        errors = self._draw_image(position_mm, weight, resolution, weights)
        for picture in self.pictures:
            picture.show()
        self.numbers.value = text(
            [
                f"FWHM of the profile: <b>{width:.3f}</b> × time-bandwidth product",
                f"from the neighbours' slabs: <b>{talk:.1f} %</b> of the signal",
                f"slices every <b>{resolution.separation_mm:g} mm</b>; error in the brain "
                f"<b>{errors.pop('simulated'):.1f} %</b>",
                "a wrong kernel adds: "
                + ", ".join(f"{name} {value:.1f} %" for name, value in errors.items()),
            ]
        )

    def _draw_pulse(self, rf, position_mm, weight, resolution, pulse):
        thickness_mm, separation_mm = resolution.thickness_mm, resolution.separation_mm
        self.b1.set_data((np.arange(len(rf)) + 0.5) / len(rf), rf / np.abs(rf).max())
        offset, mxy, mz = rf_pulse.bloch(pulse)
        magnitude = np.abs(mxy)
        reach = np.abs(position_mm) < 20 * max(1, thickness_mm / 10)
        across = position_mm[reach] / thickness_mm
        self.mxy.set_data(across, magnitude[reach])
        self.mz.set_data(across, mz[reach])
        self.phase.set_data(across, np.where(magnitude > 0.05, np.angle(mxy) / np.pi, np.nan)[reach])
        self.width.set_data([-0.5, 0.5], [magnitude.max() / 2] * 2)
        for number, line in zip((-1, 1, 0), self.slices, strict=True):
            line.set_data(position_mm[reach] + number * separation_mm, weight[reach])
        gaps_mm = np.linspace(0, 5, 11)
        talk = slice_profile.cross_talk(thickness_mm, np.append(gaps_mm, resolution.gap_mm), pulse)
        self.talk.set_data(gaps_mm, 100 * talk[:-1])
        self.here.set_data([resolution.gap_mm], [100 * talk[-1]])
        return slice_profile.fwhm(offset, magnitude) / pulse.tb, 100 * talk[-1]

    def _draw_image(self, position_mm, weight, resolution, weights):
        for name, line in self.weights.items():
            kernel = weights.get(name, np.empty(0))
            line.set_data(np.arange(len(kernel)) - len(kernel) // 2, kernel * resolution.thickness_mm)
        frequency = np.linspace(0, 0.5, 101)
        near = (
            np.abs(position_mm) < 4 * resolution.thickness_mm
        )  # the rest is a ripple that adds nothing to see
        self.transfer.set_data(
            frequency, slice_profile.transfer_function(frequency, position_mm[near], weight[near]).real
        )
        nyquist = 0.5 / resolution.separation_mm
        self.nyquist.set_data([nyquist, nyquist], [-0.4, 1.1])
        self.nyquist_text.set(
            x=nyquist + 0.008, text=f"Nyquist of the slices,\n{nyquist:.3f}; beyond: aliasing"
        )
        up = self.plane[::-1]  # rows run from top to bottom; slices are counted from below
        back = live.degraded_lines(up.T, resolution, weights)  # name -> image
        error = {name: image - back["simulated"] for name, image in back.items()} | {
            "simulated": back["simulated"] - up.T
        }
        self.image.set_data(back["simulated"].T[::-1])
        self.error.set_data(error["simulated"].T[::-1])
        inside, scale = self.brain[::-1].T, 100 / self.plane[self.brain].mean()
        return {name: scale * np.sqrt(np.mean(difference[inside] ** 2)) for name, difference in error.items()}
