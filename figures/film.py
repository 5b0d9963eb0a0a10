"""The effect as a film: one slice as the slices of its sources grow thicker.

Each picture shows a slice as it was acquired, what HACA3 makes of it, and what it makes of it with
remedies: a fusion that knows how each source was sliced, and super-resolution where the study has taught
networks for it.
``python figures/film.py`` shows the demo's first subject and writes ``figures/film.gif``; ``python
figures/film.py studies/remedies.toml film.gif`` another study's, in another file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import animation, pyplot as plt

from helpers import layout, super_resolution, volumes
from helpers.analysis import metrics
from helpers.lab import live
from helpers.pipeline import folders, harmonization, models, participants
from helpers.study import Resolution
from helpers.study.file import Study

EXPERIMENT = "2"  # sources of three orientations: what one lacks, another has
CONTRAST, PLANE = (
    "T1w",
    "coronal",
)  # of the slice; T1w is sliced axially, so its slices are seen from the side
POSITION = (96, 110, 96)  # voxel through which it goes
SECONDS = 1.2  # for each picture


def panels(model, targets, scene: live.Scene, resolution: Resolution, resolver=None) -> dict[str, np.ndarray]:
    """Title -> slice: as acquired, harmonized, harmonized with remedies."""
    scan = live.Scan(EXPERIMENT, resolution)
    remedied = live.Scan(EXPERIMENT, resolution, super_resolution=resolver is not None, fusion=True)
    made = {}
    remedy = "fusion by resolution" if resolver is None else "super-resolved,\nfusion by resolution"
    for title, each in (("harmonized", scan), (f"harmonized, {remedy}", remedied)):
        given = live.sources(scene, each, POSITION, resolver)
        if each is scan:
            made["acquired"] = given[CONTRAST][PLANE]
        images = live.harmonized(model, targets, scene, given, POSITION, each.geometry())
        made[title] = images[CONTRAST][PLANE]
    return made


def pictures(plan: Study, resolutions: tuple[Resolution, ...]) -> Iterator[tuple[str, dict]]:
    """Label -> panels, beginning with the 3D images."""
    subject = plan.subjects[0]
    images = {name: volumes.read(path)[0] for name, path in participants.cohort(plan, subject).items()}
    brain = images.pop("mask") > 0
    scene = live.scene(images, brain)
    model, targets = models.harmonizer(plan), harmonization.targets(plan)
    given = live.whole(scene, POSITION)
    best = live.harmonized(model, targets, scene, given, POSITION)[CONTRAST][PLANE]
    yield "3D images, 1 mm", {"acquired": given[CONTRAST][PLANE], "harmonized": best}
    inside = live.plane_of(brain, PLANE, POSITION)
    for resolution in sorted(resolutions, key=lambda each: (each.separation_mm, each.thickness_mm)):
        path = folders.folder(plan) / "resolvers" / f"{resolution.slug}.pt"
        resolver = super_resolution.load(path, resolution) if path.exists() else None
        made = panels(model, targets, scene, resolution, resolver)
        # As the scores have it: against what is made of the 3D images.
        named = {
            title if title == "acquired" else f"{title}\n{_psnr(best, image, inside):.1f} dB": image
            for title, image in made.items()
        }
        yield f"slices of {resolution.thickness_mm:g} mm, gaps of {resolution.gap_mm:g} mm", named


def _psnr(best, image, inside) -> float:
    return metrics.psnr(best[None], image[None], float(best[inside].max()), inside[None])


def film(shown: list[tuple[str, dict]], path: Path) -> None:
    """Write the pictures as an animated GIF, grey values alike in all of them."""
    first = shown[0][1]
    top = {0: np.percentile(first["acquired"], 99.9), 1: np.percentile(first["harmonized"], 99.9)}
    # Where the head is, and a rim.
    lines = [np.flatnonzero(first["acquired"].any(axis)) for axis in (1, 0)]
    window = tuple(slice(max(each[0] - 8, 0), each[-1] + 9) for each in lines)
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.6), facecolor="black")
    fig.subplots_adjust(0.01, 0.01, 0.99, 0.73, 0.02)
    writer = animation.PillowWriter(fps=1 / SECONDS)
    with writer.saving(fig, path, dpi=80):
        for label, images in shown:
            fig.suptitle(label, color="white", fontsize=15)
            for number, ax in enumerate(axes):
                ax.clear()
                ax.axis("off")
                if number < len(images):
                    title, image = list(images.items())[number]
                    ax.imshow(image[window].T[::-1], cmap="gray", vmin=0, vmax=1.05 * top[min(number, 1)])
                    ax.set_title(title, color="white", fontsize=11)
            writer.grab_frame(facecolor="black")
    plt.close(fig)


def main(study: str = "studies/demo.toml", path: str = str(layout.FIGURES / "film.gif")) -> None:
    plan = Study.from_toml(layout.ROOT / study)
    film(list(pictures(plan, plan.resolutions)), Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
