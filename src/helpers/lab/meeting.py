"""The panels of notebook 07: explore a scan, guess which is better, lesions, Table 1."""

import itertools
from collections.abc import Callable, Mapping

import ipywidgets as w
import numpy as np
import pandas as pd

from helpers import grid
from helpers.analysis import downstream_figures, figures
from helpers.drawing import ORANGE
from helpers.grid import AXIS
from helpers.lab import live
from helpers.lab.widgets import DPI, NARROW, PATIENT, Picture, choice, png, show_still, slider, switch, text
from helpers.study import CONTRASTS, EXPERIMENTS, ONE_ORIENTATION, RESOLUTIONS, Resolution
from helpers.study.subjects import Subject

#: The experiments in the words of the menu, which is as narrow as the sliders.
_EXPERIMENTS = [
    (f"{name}: {how['T1w'] if name in ONE_ORIENTATION else ', '.join(v[:3] for v in how.values())}", name)
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
            "subject": choice("subject", list(subjects), subjects[0], **NARROW),
            "contrast": choice("contrast", list(CONTRASTS), CONTRASTS[0], **NARROW),
            "experiment": choice("slices", _EXPERIMENTS, "1a", **NARROW),
            "thickness": slider("thickness", resolution.thickness_mm, 1, 10, 0.1, **PATIENT),
            "gap": slider("gap", resolution.gap_mm, 0, 5, 0.1, **PATIENT),
            "left": slider("left", 92, *_SHOWN[0], 1, **PATIENT),
            "back": slider("back", 112, *_SHOWN[1], 1, **PATIENT),
            "up": slider("up", 88, *_SHOWN[2], 1, **PATIENT),
            "super_resolution": switch("super-resolve"),
            "fusion": switch("fuse by resolution"),
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
        self.scores.value = text(
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
        show_still(self.picture.widget.value, self.scores.value)

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
        self.says.value = text(
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
        self.says.value = text([f"{self._describe()} Harmonizing …"])
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
        answer = (
            f"{self._describe()} Harmonized: <b>A {scores[0]:.1f} dB, B {scores[1]:.1f} dB</b>. {better} is "
            "better"
        )
        if button:
            self.right += button.description.startswith(better)
            answer += f"; the room was right in <b>{self.right} of {self.number}</b>"
        self.says.value = text([f"{answer}."])

    def still(self) -> None:
        """Show the question and, for those who were not there, the answer."""
        self._answer()
        show_still(self.picture.widget.value, self.says.value)

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
        figure, *_ = downstream_figures.lesion_figure(panels)
        self.says = w.HTML(
            text(
                [
                    "Harmonized FLAIR. Green: lesions that a simple published rule finds; orange: lesions of "
                    "the 3D scans that it misses."
                ]
            )
        )
        self.figure = w.Image(
            format="png", value=png(figure, DPI + 40), layout=w.Layout(max_width="100%", object_fit="contain")
        )
        self.widget = w.VBox([self.says, self.figure])

    def still(self) -> None:
        """Show the slice without the app."""
        show_still(self.figure.value, self.says.value)


class TableOne:
    """Table 1, experiment by experiment, with what the last study found.

    Parameters
    ----------
    scores : (str, DataFrame)
        Name and score table of a study that was run.
    """

    def __init__(self, scores: tuple[str, pd.DataFrame]):
        self.scores = scores
        self.experiment = choice("experiment", list(EXPERIMENTS), "1a")
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
            self.says.value = text([*lines, f"The study “{name}” did not run this experiment."])
            self.figure.value = b""
            return
        number = figures.score_figures([experiment])[0]
        subjects = table.subject.nunique()
        self.says.value = text(
            [
                *lines,
                f"Scores of the study “{name}”, {subjects} subject{'s' if subjects > 1 else ''} (figure "
                f"{number}):",
            ]
        )
        figure, *_ = figures.score_figure(table, number)
        self.figure.value = png(figure, DPI + 70)

    def still(self) -> None:
        """Show every experiment, one after the other, and once each figure."""
        stills = []
        for experiment in EXPERIMENTS:
            self.experiment.value = experiment
            stills.append((self.figure.value, self.says.value))
        for figure, group in itertools.groupby(stills, key=lambda still: still[0]):
            show_still(figure, *(words for _, words in group))


def lesson(explorer: Explorer, guess: Guess, lesions: Lesions, table: TableOne) -> w.Widget:
    """The panels of the lab meeting as tabs, in letters that can be read from the last row."""
    panels = {"Explore": explorer, "Guess first": guess, "Lesions": lesions, "Table 1": table}
    tabs = w.Tab([panel.widget for panel in panels.values()], titles=list(panels))
    box = w.VBox([w.HTML(_BIG), tabs])
    box.add_class("rm-app")
    return box
