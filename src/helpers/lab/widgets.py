"""The interactive panels of notebooks 01 and 07.

A panel draws its axes once. What a slider changes is put into lines and images that are there, and the figure
becomes a PNG in a widget: several times as fast as a new figure, and the same in JupyterLab and Voila. The
numbers come from `helpers.lab.live` and `helpers.slice_profile`.
"""

import io
from collections.abc import Callable, Iterable, Mapping

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Image, display
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from helpers import grid
from helpers.acquisition import rf_pulse, slice_profile
from helpers.acquisition.rf_pulse import Pulse
from helpers.analysis import figures
from helpers.drawing import BLUE, GREEN, ORANGE, VERMILLION
from helpers.grid import AXIS
from helpers.lab import live
from helpers.study import CONTRASTS, EXPERIMENTS, ONE_ORIENTATION, RESOLUTIONS, Resolution
from helpers.study.subjects import Subject

_DPI = 80
_FILTERS = {
    "ls": "least squares",
    "pm": "equiripple",
    "ms": "windowed sinc",
    "min": "minimum phase",
    "max": "maximum phase",
}
_STYLE = (
    "<style>.rm-big {font-size: 18px; line-height: 1.45} .rm-big b {font-size: 21px} .rm-error "
    "{color: #A33B00}</style>"
)


class Picture:
    """A matplotlib figure whose axes are drawn once; what moves in it is drawn anew each time, and shown as a
    PNG.

    Parameters
    ----------
    width, height : float
        In inches of `_DPI` pixels.
    layout : callable
        Is given the figure, makes its axes, and returns the artists that will change. The limits of the axes
        must not.
    """

    def __init__(self, width: float, height: float, layout: Callable[[Figure], list[Artist]]):
        figure = Figure(figsize=(width, height), dpi=_DPI)
        self.canvas = FigureCanvasAgg(figure)
        self.moving = layout(figure)
        for artist in self.moving:
            artist.set_animated(True)  # is left out of the background
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)
        self.widget = w.Image(
            format="png", layout=w.Layout(width=f"{round(width * _DPI)}px", max_width="100%")
        )

    def show(self) -> None:
        """Draw the artists as they are now."""
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            artist.axes.draw_artist(artist)
        buffer = io.BytesIO()
        # Little compression: what is saved in bytes to the next window is lost in time.
        imsave(buffer, np.asarray(self.canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
        self.widget.value = buffer.getvalue()


def _text(lines: Iterable[str]) -> str:
    return f"{_STYLE}<div class='rm-big'>{'<br>'.join(lines)}</div>"


def _still(picture: w.Image, words: w.HTML) -> None:
    """Show a picture and its text as they are now, for a page without a kernel."""
    display(HTML(words.value))
    if picture.value:
        display(Image(picture.value))


def _png(figure: Figure, dpi: int) -> bytes:
    """A figure of pyplot as a PNG; closed, so that the notebook does not show it again."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()


def _slider(description: str, value: float, low: float, high: float, step: float, **look):
    kind, form = (w.IntSlider, "d") if isinstance(step, int) else (w.FloatSlider, ".3g")
    return kind(
        value, min=low, max=high, step=step, description=description, readout_format=form, **(_WIDE | look)
    )


def _choice(description: str, options, value, **look):
    return w.Dropdown(options=options, value=value, description=description, **(_WIDE | look))


def _switch(description: str):
    return w.Checkbox(False, description=description, indent=False, layout=w.Layout(width="auto"))


#: How controls look: beside a panel of pictures on top of each other, and in the app, where they also wait
#: for the mouse.
_WIDE = {"style": {"description_width": "115px"}, "layout": {"width": "330px"}}
_NARROW = {"style": {"description_width": "94px"}, "layout": {"width": "298px"}}
_PATIENT = _NARROW | {"continuous_update": False}


# ---------------------------------------------------------------- notebook 01


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
            "tb": _slider("time-bandwidth", pulse.tb, 2, 24, 0.5),
            "d1": _slider("ripple inside", pulse.d1, 0.001, 0.1, 0.001),
            "d2": _slider("ripple outside", pulse.d2, 0.001, 0.1, 0.001),
            "thickness": _slider("thickness (mm)", resolution.thickness_mm, 1, 10, 0.1),
            "gap": _slider("gap (mm)", resolution.gap_mm, 0, 5, 0.1),
            "flip": _slider("flip angle (°)", pulse.flip_angle_deg, *_FLIP_DEG[pulse.ptype], 1.0),
            "ftype": _choice("filter", [(_FILTERS[f], f) for f in rf_pulse.FILTER_TYPES], pulse.ftype),
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
            self.numbers.value = _text([f"<span class='rm-error'>{error}</span>"])
            return
        width, talk = self._draw_pulse(rf, position_mm, weight, resolution, pulse)
        errors = self._draw_image(position_mm, weight, resolution, weights)
        for picture in self.pictures:
            picture.show()
        self.numbers.value = _text(
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


# ---------------------------------------------------------------- notebook 07

#: The experiments in the words of the menu, which is as narrow as the sliders.
_EXPERIMENTS = [
    (
        f"{name}: {how['T1w'] if name in ONE_ORIENTATION else ', '.join(v[:3] for v in how.values())}",
        name,
    )
    for name, how in EXPERIMENTS.items()
]
_COLUMNS = ("3D image", "as acquired", "3D image, harmonized", "harmonized", "difference of the two")
_WHITE, _DIFFERENCE = (
    1.45,
    0.5,
)  # ends of the look-up tables, in units of the 95th percentile by which HACA3 divides
#: What of the MNI grid is shown, voxels: first and last to the left, to the back, and up.
_SHOWN = ((18, 174), (14, 204), (8, 166))
#: Where the guesses and the lesions look, voxels.
_POSITION = (92, 112, 88)
_BIG = """<style>
body[data-voila] .jp-MarkdownCell {display: none}
.rm-app, .rm-app .widget-label, .rm-app select, .rm-app .widget-readout, .rm-app button {
  font-size: 18px !important}
.rm-app .rm-big {font-size: 18px; line-height: 1.4} .rm-app .rm-big small {font-size: 15px}
.rm-app .rm-big b {font-size: 21px; white-space: nowrap}
.rm-app .lm-TabBar-tab, .rm-app .p-TabBar-tab {font-size: 19px; padding: 4px 18px; flex: 0 1 230px !important}
.rm-app .widget-checkbox * {font-size: 16px !important}
.rm-app button {height: 44px} .rm-app .widget-dropdown, .rm-app .widget-hslider {height: 32px}
</style>"""


def _upright(planes: Mapping[str, np.ndarray], plane: str) -> np.ndarray:
    return grid.upright(np.expand_dims(planes[plane], AXIS[plane]), plane, 0)


def _brain_axes(axes, plane: str, **look):
    """An image of a plane in its axes, cropped to where a brain in MNI space is."""
    across, down = (axis for axis in range(3) if axis != AXIS[plane])
    n = {0: 192, 1: 224, 2: 192}
    image = axes.imshow(np.zeros((n[down], n[across])), interpolation="nearest", **look)
    rows = _SHOWN[down] if plane == "axial" else tuple(n[down] - 1 - edge for edge in _SHOWN[down][::-1])
    axes.set(xlim=(_SHOWN[across][0] - 0.5, _SHOWN[across][1] + 0.5), ylim=(rows[1] + 0.5, rows[0] - 0.5))
    axes.axis("off")
    return image


def _words(scan: live.Scan) -> str:
    """A scan, as it is announced to the room."""
    how = EXPERIMENTS[scan.experiment]
    if scan.experiment in ONE_ORIENTATION:
        slices = f"{how[CONTRASTS[0]]} slices"
    else:
        slices = ", ".join(f"{contrast} {orientation}" for contrast, orientation in how.items())
    remedies = ", super-resolved" * scan.super_resolution + ", fused by resolution" * scan.fusion
    return f"{slices}, {scan.resolution.label} mm{remedies}"


class Explorer:
    """Choose a scan, with remedies or without, and look at it in three planes: the 3D image, what was
    acquired, and both harmonized.

    Parameters
    ----------
    subjects : sequence of Subject
        To choose from.
    open_subject : callable
        Subject -> `live.Scene`.
    model : helpers.haca3.Harmonizer
    targets : dict of str to helpers.haca3.Target
    resolution : Resolution
        To begin with.
    resolver : helpers.super_resolution.SuperResolver, optional
        Without it there is no super-resolution.
    """

    def __init__(
        self,
        subjects,
        open_subject: Callable[[Subject], live.Scene],
        model,
        targets: Mapping,
        resolution: Resolution,
        resolver=None,
    ):
        self.open_subject, self.model, self.targets, self.resolver = open_subject, model, targets, resolver
        self.controls = {
            "subject": _choice("subject", list(subjects), subjects[0], **_NARROW),
            "contrast": _choice("contrast", list(CONTRASTS), CONTRASTS[0], **_NARROW),
            "experiment": _choice("slices", _EXPERIMENTS, "1a", **_NARROW),
            "thickness": _slider("thickness", resolution.thickness_mm, 1, 10, 0.1, **_PATIENT),
            "gap": _slider("gap", resolution.gap_mm, 0, 5, 0.1, **_PATIENT),
            "left": _slider("left", 92, *_SHOWN[0], 1, **_PATIENT),
            "back": _slider("back", 112, *_SHOWN[1], 1, **_PATIENT),
            "up": _slider("up", 88, *_SHOWN[2], 1, **_PATIENT),
            "super_resolution": _switch("super-resolve"),
            "fusion": _switch("fuse by resolution"),
        }
        self.scores = w.HTML()
        self.picture = Picture(11.4, 7.0, self._layout)
        # what is shown -> the 3D image and its harmonization: an acquisition does not change them
        self.known = {}
        self.resolved = {}  # the same for the planes that were super-resolved, of one subject
        for control in self.controls.values():
            control.observe(self.update, "value")
        self.update()
        *sliders, first, second = self.controls.values()
        self.widget = w.HBox(
            [
                w.VBox([*sliders, w.HBox([first, second]), self.scores], layout=w.Layout(flex="0 0 305px")),
                self.picture.widget,
            ]
        )

    def _layout(self, figure):
        grid = figure.subplots(3, 5, height_ratios=(1.2, 1, 1))
        figure.subplots_adjust(left=0.002, right=0.998, bottom=0.002, top=0.955, wspace=0.02, hspace=0.02)
        self.images, self.cross = {}, []
        for row, plane in enumerate(("axial", "coronal", "sagittal")):
            for axes, column in zip(grid[row], _COLUMNS, strict=True):
                error = column == _COLUMNS[-1]
                look = (
                    {"cmap": "PuOr_r", "vmin": -_DIFFERENCE, "vmax": _DIFFERENCE}
                    if error
                    else {"cmap": "gray", "vmin": 0, "vmax": _WHITE}
                )
                self.images[plane, column] = _brain_axes(axes, plane, **look)
                if row == 0:
                    axes.set_title(column, fontsize=14)
            self.cross.append(
                [draw(0, color=ORANGE, lw=1, ls=":") for draw in (grid[row, 0].axvline, grid[row, 0].axhline)]
            )
        return [*self.images.values(), *(line for lines in self.cross for line in lines)]

    def update(self, _change=None) -> None:
        """Follow the controls: first what is acquired, then, as soon as it is there, what HACA3 makes of
        it."""
        value = {name: control.value for name, control in self.controls.items()}
        position = tuple(int(value[name]) for name in ("left", "back", "up"))
        resolution = Resolution(round(value["thickness"], 2), round(value["gap"], 2))
        reasons = self._allow(value["experiment"], resolution)
        remedies = {name: value[name] and not reasons[name] for name in reasons}
        scan = live.Scan(value["experiment"], resolution, **remedies)
        looked_at, contrast = self.open_subject(value["subject"]), value["contrast"]
        aim = {contrast: self.targets[contrast]}
        view = (value["subject"], contrast, position)
        if view not in self.known:
            whole = live.whole(looked_at, position)
            self.known = {
                view: (whole, live.harmonized(self.model, aim, looked_at, whole, position)[contrast])
            }
        whole, truth = self.known[view]
        if value["subject"] not in self.resolved:
            self.resolved = {value["subject"]: {}}
        store = self.resolved[value["subject"]]
        sources = live.sources(looked_at, scan, position, self.resolver, store)
        scale, norm = looked_at.scale[contrast], self.targets[contrast].norm
        self._put(_COLUMNS[0], whole[contrast], scale)
        self._put(_COLUMNS[1], sources[contrast], scale)
        self._put(_COLUMNS[2], truth, norm)
        self._move(position)
        self.picture.show()
        image = live.harmonized(self.model, aim, looked_at, sources, position, scan.geometry())[contrast]
        self._put(_COLUMNS[3], image, norm)
        self._put(_COLUMNS[4], {plane: image[plane] - truth[plane] for plane in image}, norm)
        self.picture.show()
        after = live.compare(truth, image, looked_at, position)
        if EXPERIMENTS[scan.experiment][contrast] == "3D":
            given = "as acquired <b>3D</b>"
        else:
            before = live.compare(whole[contrast], sources[contrast], looked_at, position)
            how = "super-resolved" if scan.super_resolution else "as acquired"
            given = f"{how} <b>{before[0]:.1f} dB</b> <small>SSIM {before[1]:.2f}</small>"
        self.scores.value = _text(
            [
                f"{resolution.label} mm: a slice every <b>{resolution.separation_mm:g} mm</b>",
                given,
                f"harmonized <b>{after[0]:.1f} dB</b> <small>SSIM {after[1]:.2f}</small>",
                "<small>against the 3D image to the left of it,<br>inside the brain, in these planes</small>",
                *(f"<small>{reason}</small>" for reason in reasons.values() if reason),
            ]
        )

    def _allow(self, experiment: str, resolution: Resolution) -> dict[str, str]:
        """Switch remedies off that cannot be had here: name of the control -> why, or nothing."""
        reasons = {"super_resolution": "", "fusion": ""}
        if self.resolver is None:
            reasons["super_resolution"] = "super-resolution: no network is given"
        elif resolution != self.resolver.resolution:
            known = self.resolver.resolution.label
            reasons["super_resolution"] = f"super-resolution: for {known} mm only"
        if experiment in ONE_ORIENTATION:
            reasons["fusion"] = "fusion: all are sliced alike"
        for name, reason in reasons.items():
            self.controls[name].disabled = bool(reason)
        return reasons

    def still(self) -> None:
        """Show it without its controls, as it is now."""
        _still(self.picture.widget, self.scores)

    def _put(self, column, planes, scale):
        for plane in planes:
            self.images[plane, column].set_data(_upright(planes, plane) / scale)

    def _move(self, position):
        left, back, up = position[0], position[1], 191 - position[2]
        for (vertical, horizontal), (x, y) in zip(
            self.cross, ((left, back), (left, up), (back, up)), strict=True
        ):
            vertical.set_xdata([x, x])
            horizontal.set_ydata([y, y])


class Guess:
    """Which of two scans is harmonized better: slices or remedies? The room says, then sees.

    Parameters
    ----------
    subject : callable
        Returns the `live.Scene` that is looked at.
    model, targets
        As in `Explorer`.
    contrast : str
        That is judged.
    seed : int
        Of the questions.
    resolver : helpers.super_resolution.SuperResolver, optional
        Without it no question is about super-resolution.
    """

    def __init__(
        self,
        subject: Callable[[], live.Scene],
        model,
        targets: Mapping,
        contrast: str = "T1w",
        seed: int = 0,
        resolver=None,
    ):
        self.resolver = resolver
        self.subject, self.model, self.targets, self.contrast, self.seed = (
            subject,
            model,
            targets,
            contrast,
            seed,
        )
        self.number, self.right = 0, 0
        self.buttons = [
            w.Button(description=f"{name} is better", layout=w.Layout(width="200px")) for name in "AB"
        ]
        self.next = w.Button(description="next question", layout=w.Layout(width="200px"))
        self.says = w.HTML()
        self.picture = Picture(14.8, 5.6, self._layout)
        for button in self.buttons:
            button.on_click(self._answer)
        self.next.on_click(self.ask)
        self.ask()
        self.widget = w.VBox([w.HBox([*self.buttons, self.next]), self.says, self.picture.widget])

    def _layout(self, figure):
        grid = figure.subplots(2, 6)
        figure.subplots_adjust(left=0.03, right=0.998, bottom=0.002, top=0.93, wspace=0.02, hspace=0.02)
        self.images = {}
        for row, name in enumerate("AB"):
            figure.text(0.004, 0.7 - 0.46 * row, name, fontsize=26)
            for column, axes in enumerate(grid[row]):
                plane = ("axial", "coronal", "sagittal")[column % 3]
                self.images[name, column >= 3, plane] = _brain_axes(
                    axes, plane, cmap="gray", vmin=0, vmax=_WHITE
                )
        grid[0, 1].set_title("as acquired", fontsize=15)
        grid[0, 4].set_title("harmonized", fontsize=15)
        return list(self.images.values())

    def ask(self, _button=None) -> None:
        """Show two acquisitions, and nothing of what becomes of them."""
        self.number += 1
        can_resolve = self.resolver and self.resolver.resolution
        self.choices = live.duel(self.number, RESOLUTIONS, self.seed, can_resolve)
        looked_at = self.subject()
        self.sources = [live.sources(looked_at, scan, _POSITION, self.resolver) for scan in self.choices]
        nothing = {plane: np.zeros_like(image) for plane, image in self.sources[0][self.contrast].items()}
        for name, source in zip("AB", self.sources, strict=True):
            self._put(name, False, source[self.contrast], looked_at.scale[self.contrast])
            self._put(name, True, nothing, 1)
        self._enable(True)
        self.says.value = _text(
            [
                f"Question {self.number}. {self._describe()} Which gives the better harmonized "
                f"{self.contrast} image?"
            ]
        )
        self.picture.show()

    def _describe(self):
        return " ".join(f"<b>{name}</b>: {_words(scan)}." for name, scan in zip("AB", self.choices))

    def _answer(self, button=None):
        self._enable(False)
        self.says.value = _text([f"{self._describe()} Harmonizing …"])
        looked_at = self.subject()
        whole = live.whole(looked_at, _POSITION)
        aim = {self.contrast: self.targets[self.contrast]}
        truth, *answers = (
            live.harmonized(self.model, aim, looked_at, candidate, _POSITION, geometry)[self.contrast]
            for candidate, geometry in zip(
                (whole, *self.sources), (None, *(scan.geometry() for scan in self.choices)), strict=True
            )
        )
        scores = [live.compare(truth, image, looked_at, _POSITION)[0] for image in answers]
        for name, image in zip("AB", answers, strict=True):
            self._put(name, True, image, self.targets[self.contrast].norm)
        self.picture.show()
        better = "AB"[int(np.argmax(scores))]
        told = (
            f"{self._describe()} Harmonized: <b>A {scores[0]:.1f} dB, B {scores[1]:.1f} dB</b>. {better} is "
            "better"
        )
        if button:
            self.right += button.description.startswith(better)
            told += f"; the room was right in <b>{self.right} of {self.number}</b>"
        self.says.value = _text([f"{told}."])

    def still(self) -> None:
        """Show the question and, for those who were not there, the answer."""
        self._answer()
        _still(self.picture.widget, self.says)

    def _enable(self, asking):
        for button in self.buttons:
            button.disabled = not asking
        self.next.disabled = asking

    def _put(self, name, harmonized, planes, scale):
        for plane in planes:
            self.images[name, harmonized, plane].set_data(_upright(planes, plane) / scale)


class Lesions:
    """Lesions that are found and missed in one slice, from thinner to thicker slices.

    Parameters
    ----------
    subject, model, targets
        As in `Guess`.
    scans : sequence of live.Scan
        Beside the 3D scans, from thinner to thicker slices.
    """

    def __init__(self, subject: Callable[[], live.Scene], model, targets: Mapping, scans):
        panels = live.lesion_panels(model, targets, subject(), scans, _POSITION)
        figure, *_ = figures.lesion_figure(panels)
        self.says = w.HTML(
            _text(
                [
                    "Harmonized FLAIR. Green: lesions that a simple published rule finds; orange: lesions of "
                    "the 3D scans that it misses."
                ]
            )
        )
        self.figure = w.Image(
            format="png",
            value=_png(figure, _DPI + 40),
            layout=w.Layout(max_width="100%", object_fit="contain"),
        )
        self.widget = w.VBox([self.says, self.figure])

    def still(self) -> None:
        """Show the slice without the app."""
        _still(self.figure, self.says)


class TableOne:
    """Table 1, experiment by experiment, with what the last study found.

    Parameters
    ----------
    scores : (str, DataFrame)
        Name and score table of a study that was run.
    """

    def __init__(self, scores: tuple[str, pd.DataFrame]):
        self.scores = scores
        self.experiment = _choice("experiment", list(EXPERIMENTS), "1a")
        self.says, self.figure = (
            w.HTML(),
            w.Image(
                format="png", layout=w.Layout(max_width="100%", max_height="430px", object_fit="contain")
            ),
        )
        self.experiment.observe(self.update, "value")
        self.update()
        self.widget = w.VBox([self.experiment, self.says, self.figure])

    def update(self, _change=None) -> None:
        """Say what the experiment's sources are, and show its scores."""
        experiment = self.experiment.value
        lines = [
            "Sources: "
            + ", ".join(f"{contrast} <b>{how}</b>" for contrast, how in EXPERIMENTS[experiment].items())
            + "."
        ]
        name, table = self.scores
        if experiment not in set(table.experiment):
            self.says.value = _text([*lines, f"The study “{name}” did not run this experiment."])
            self.figure.value = b""
            return
        number = figures.score_figures([experiment])[0]
        subjects = table.subject.nunique()
        self.says.value = _text(
            [
                *lines,
                f"Scores of the study “{name}”, {subjects} subject{'s' if subjects > 1 else ''} (figure "
                f"{number}):",
            ]
        )
        figure, *_ = figures.score_figure(table, number)
        self.figure.value = _png(figure, _DPI + 70)

    def still(self) -> None:
        """Show every experiment, one after the other."""
        for experiment in EXPERIMENTS:
            self.experiment.value = experiment
            _still(self.figure, self.says)


def lesson(explorer: Explorer, guess: Guess, lesions: Lesions, table: TableOne) -> w.Widget:
    """The panels of the lab meeting as tabs, in letters that can be read from the last row."""
    panels = {"Explore": explorer, "Guess first": guess, "Lesions": lesions, "Table 1": table}
    tabs = w.Tab([panel.widget for panel in panels.values()], titles=list(panels))
    box = w.VBox([w.HTML(_BIG), tabs])
    box.add_class("rm-app")
    return box
