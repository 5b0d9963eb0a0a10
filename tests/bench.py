"""Speed, as ratios measured in one process, so that they mean the same on any machine: ``python
tests/bench.py``.

Each bench is a function that yields lines ``(what, ratios, demanded)``: how many times faster than the
reference in each repeat, and the median that is the goal. To add one, write it and name it in BENCHES. Names
of benches as arguments run only those.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import torch
from scipy import ndimage

from helpers import grid, haca3, layout, study
from helpers.acquisition import degradation, rf_pulse, slice_profile
from helpers.analysis import metrics
from helpers.cohort import phantom, scanners
from helpers.lab import live, meeting, profile_panel
from helpers.pipeline import folders
from helpers.runner import graph, log
from helpers.study.file import Study

REPEATS = 3


def ratios(reference, ours, runs=5):
    """Times faster than the reference, once for each repeat; the reference runs once, ours `runs` times."""
    ours()  # builds what is cached, and wakes the BLAS threads
    for _ in range(REPEATS):
        start = time.perf_counter()
        reference()
        middle = time.perf_counter()
        for _ in range(runs):
            ours()
        yield (middle - start) / ((time.perf_counter() - middle) / runs)


def convolve_then_sample(volume, axis, resolution):
    """The two steps, each by its scipy function, on the whole volume."""
    taps = slice_profile.taps(resolution.thickness_mm, 1.0)
    blurred = ndimage.convolve1d(volume, taps, axis=axis, mode="nearest")
    lines = [np.arange(n, dtype=float) for n in volume.shape]
    lines[axis] = degradation.slice_positions(volume.shape[axis], 1.0, resolution)
    return ndimage.map_coordinates(blurred, np.meshgrid(*lines, indexing="ij"), order=3, mode="nearest")


def degrade():
    """Simulating a 2D acquisition of 192 x 224 x 192 voxels, against convolve1d + map_coordinates."""
    volume = np.random.default_rng(0).random((192, 224, 192), dtype=np.float32)
    affine = np.array([[-1.0, 0, 0, 96], [0, -1, 0, 96], [0, 0, 1, -78], [0, 0, 0, 1]])
    resolution = study.Resolution(3, 0)  # the most slices of all resolutions: the most work for the matrix
    for orientation in study.ORIENTATIONS:
        axis = grid.through_plane_axis(affine, orientation)
        measured = ratios(
            lambda axis=axis: convolve_then_sample(volume, axis, resolution),
            lambda orientation=orientation: degradation.degrade(volume, affine, orientation, resolution),
        )
        yield f"degrade {orientation} {resolution.label} / convolve1d + map_coordinates", list(measured), 20


class Plain:
    """A plain reading of HACA3 as published: 56 slices at a time, every layer as it is defined, everything
    recomputed."""

    def __init__(self, modules):
        self.beta, self.theta, self.eta, self.decoder, self.attention = (
            modules[name]
            for name in ("beta_encoder", "theta_encoder", "eta_encoder", "decoder", "attention_module")
        )

    def unet(self, net, x):
        x, skips = net.in_conv(x), []
        for down in net.down_convs:
            skips.append(down(x))
            x = torch.nn.functional.max_pool2d(skips[-1], 2)
        x = net.bottleneck_conv(x)
        for level in (3, 2, 1, 0):
            x = net.up_convs[level](torch.cat([skips[level], net.up_samples[level](x)], dim=1))
        return net.out_conv(x)

    def encode(self, images):
        """(B, 1, 224, 224) -> logits (B, 5, 224, 224), key (B, 4); the code of the source is sampled too, as
        published."""
        logits = self.unet(self.beta, images)
        torch.nn.functional.gumbel_softmax(logits, tau=1, hard=True, dim=1)
        eta = self.eta.seq(torch.cat([self.eta.in_conv(images), images], dim=1))
        return logits, torch.cat([self.theta(images)[0], eta], dim=1).flatten(1)

    def decode(self, logits, keys, target):
        """Lists of logits and keys of the sources -> labels and contrast (B, 3, 224, 224), images (B, 224,
        224).

        Labels are sampled, as published; the most probable ones are returned, which can be compared.
        """
        query = target.expand(len(keys[0]), 4)
        values = torch.stack([each.flatten(2) for each in logits], dim=-1)
        fused, _ = self.attention(
            query[..., None], torch.stack(keys, dim=-1)[:, :, None], values, temperature=5.0
        )
        torch.nn.functional.gumbel_softmax(fused, tau=1, hard=True, dim=1)
        code = torch.cat(
            [fused.argmax(1, keepdim=True) / 5, query[:, :2, None, None].expand(-1, 2, 224, 224)], dim=1
        )
        return code, torch.relu(self.unet(self.decoder, code))[:, 0]


def harmonize():
    """HACA3 at its published widths, compiled, against a plain reading of it."""
    from helpers import haca3
    from helpers.cohort import phantom, scanners
    from helpers.haca3 import networks, slicing
    from helpers.haca3.fast import winograd

    subject, scanner, step = phantom.subject(1), scanners.scanner("study-1"), 14
    images = {contrast: phantom.render(subject, scanner, contrast) for contrast in study.CONTRASTS}
    generator = torch.Generator().manual_seed(
        0
    )  # speed does not depend on the weights, and rounding on their scale
    modules = {name: module.eval() for name, module in networks.build().items()}
    for weights in (weights for module in modules.values() for weights in module.parameters()):
        scale = (2 / weights[0].numel()) ** 0.5 if weights.ndim > 1 else 0.1
        torch.nn.init.normal_(weights, std=scale, generator=generator)
    torch.nn.init.constant_(modules["decoder"].out_conv[2].bias, 1.0)
    plain, ours = Plain(modules), haca3.Harmonizer(modules, compiled=True)
    target = haca3.Target(np.float32([0.5, -0.5]), np.float32([0.2, 0.1]), 1.0)
    slices = list(slicing.visited("axial", step))
    batch = [k for k in range(84, 140)]  # 56 slices, all of which show brain
    prepared = {contrast: ours.prepare(image) for contrast, image in images.items()}
    encodings = {contrast: ours.encode(image, slice_step=step) for contrast, image in images.items()}
    encoded = sum(code[1] is not None for source in encodings.values() for code in source.slices.values())
    decoded = 3 * sum(encodings["T1w"].slices["axial", k][0].any() for k in slices)

    stacks = [
        torch.from_numpy(np.stack([slicing.slice_of(source.volume, "axial", k) for k in batch]))[:, None]
        for source in prepared.values()
    ]
    query = torch.from_numpy(np.concatenate([target.theta, target.eta]))

    def seconds(sources):  # sampled, as in a study
        start = time.perf_counter()
        ours.harmonize(sources, dict.fromkeys(study.CONTRASTS, target), slice_step=step)
        return time.perf_counter() - start

    slow_encode, slow_decode, fast_encode, fast_decode = ([] for _ in range(4))
    for repeat in range(REPEATS + 1):
        both_s, decode_s = seconds(prepared), seconds(encodings)
        if repeat:  # the first one builds what is cached
            fast_encode.append((both_s - decode_s) / encoded)
            fast_decode.append(decode_s / decoded)
            start = time.perf_counter()
            with torch.inference_mode():
                logits, keys = zip(*(plain.encode(images) for images in stacks))
                middle = time.perf_counter()
                labelled, expected = plain.decode(logits, keys, query)
            slow_encode.append((middle - start) / (3 * len(batch)))
            slow_decode.append((time.perf_counter() - middle) / len(batch))
    yield (
        "HACA3: encode a slice / plain, 56 at a time",
        [slow / fast for slow, fast in zip(slow_encode, fast_encode)],
        3.5,
    )
    yield (
        "HACA3: decode a slice / plain, 56 at a time",
        [slow / fast for slow, fast in zip(slow_decode, fast_decode)],
        2.5,
    )

    # The networks' work for one subject of the study: 8 experiments at 8 resolutions and two ground truths,
    # three planes of 224 slices. Plain: 3 encodings and 3 decodings for each of 66 input sets. Ours: slices
    # that show something; the 3D image of experiments 3 to 6 once each. A preview encodes each of the 9 x 8
    # stacks and of the 3D images once for all experiments.
    shown = np.mean(
        [slicing.slice_of(prepared["T1w"].volume, o, k).any() for o in study.ORIENTATIONS for k in range(224)]
    )
    slow = [66 * 3 * (e + d) for e, d in zip(slow_encode, slow_decode)]
    for what, number in (("whole volumes", 20 * 8 + 4 + 2 * 3), ("preview", 9 * 8 + 3)):
        fast = [shown * (number * e + 66 * 3 * d) for e, d in zip(fast_encode, fast_decode)]
        yield (
            f"HACA3: networks of the study, {what} / plain",
            [plainly / each for plainly, each in zip(slow, fast)],
            6,
        )
    decoder = winograd.accelerated(modules["decoder"])
    with torch.inference_mode():
        same = [(k, batch.index(k)) for k in slices if k in batch]
        pairs = {
            "logits": [(logits[0][number], encodings["T1w"].slices["axial", k][1]) for k, number in same],
            "images from the same labels": [
                (expected[number, None], decoder(labelled[number, None])[0]) for _, number in same
            ],
        }
    for what, each in pairs.items():
        agreed = min(
            metrics.psnr(wanted.numpy(), image.numpy(), float(wanted.abs().max())) for wanted, image in each
        )
        print(f"HACA3: compiled against plain, {what}: {agreed:.0f} dB or more")


def fuse():
    """The fusion net in the box of a brain, compiled, against the net as published, on one thread."""
    from helpers.haca3.fast import fusion

    net = haca3.checkpoint.load_fusion(layout.MODELS / "fusion-small.pt")
    x = torch.zeros((1, 3, 224, 224, 224))
    x[..., 40:190, 22:200, 38:182] = torch.rand((150, 178, 144), generator=torch.Generator().manual_seed(0))
    boxed, threads = fusion.BoxedFusion(net, fusion.library()), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            measured = list(ratios(lambda: net(x), lambda: boxed(x), runs=1))
    finally:
        torch.set_num_threads(threads)
    yield "fusion net: whole volume / box of the brain", measured, 3


PREVIEW = {"name": "bench", "subjects": [1]}


def in_turn(commands, environment, slice_s=5):
    """Seconds that each of some commands takes, one running at a time and the others stopped: a machine is
    not equally fast all day."""
    running = {
        name: psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        for name, command in commands.items()
    }
    took = dict.fromkeys(running, 0.0)

    def tell(process, what):
        told = set()
        while new := [each for each in (process, *process.children(recursive=True)) if each.pid not in told]:
            for each in new:  # Again, for what one of them started meanwhile.
                told.add(each.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(what)

    try:
        for process in running.values():
            tell(process, signal.SIGSTOP)
        while running:
            for name, process in list(running.items()):
                start = time.perf_counter()
                tell(process, signal.SIGCONT)
                with contextlib.suppress(psutil.TimeoutExpired):
                    if process.wait(slice_s):
                        raise subprocess.CalledProcessError(process.returncode, commands[name])
                    del running[name]
                took[name] += time.perf_counter() - start
                if name in running:
                    tell(process, signal.SIGSTOP)
    finally:
        for process in running.values():
            if process.poll() is None:  # one of the others failed
                tell(process, signal.SIGKILL)
    return took


def machinery():
    """A study's notebooks in kernels on Dask, with report and records, against the same helpers called in a
    plain loop.

    One worker, one thread, one subject: the demo's preview, then whole volumes of one experiment at one
    resolution. The first loop calls what makes the study's files; the second runs all that the notebooks say,
    and draws their figures, in one process.
    """
    whole = {
        **PREVIEW,
        "experiments": ["3"],
        "resolutions": ["5||1.5"],
        "slice_step": 1,
        "reconstruction": list(study.ORIENTATIONS),
    }
    for what, settings, goal in (("the demo's preview", PREVIEW, 1 / 1.3), ("whole volumes", whole, 1 / 1.1)):
        with tempfile.TemporaryDirectory() as folder:
            # Dask counts the cores that it may use, and gives a single worker all of them: one is what the
            # loops have.
            core = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
            commands = {}
            for way, script in (("loop", LOOP), ("cells", CELLS), ("study", STUDY)):
                code = (
                    f"from helpers.study.file import Study\nplan = Study(output_dir={folder + '/' + way!r}, "
                    f"**{settings!r})\n{script}"
                )
                commands[way] = [*core, sys.executable, "-c", code]
            took = in_turn(
                commands, {**os.environ, "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
            )
        for way, done in (("loop", "files only"), ("cells", "all that the notebooks do")):
            yield (
                f"plain loop, {done} / study, {what}: {took[way]:.0f} s / {took['study']:.0f} s",
                [took[way] / took["study"]],
                goal,
            )


# Every file that the study makes, and no figures.
LOOP = """
from helpers.pipeline import harmonization, scoring, steps
from helpers.study import ONE_ORIENTATION
for subject in plan.subjects:
    for acquisition in plan.acquisitions():
        for resolution in plan.resolutions:
            steps.registered(plan, subject, *acquisition, resolution)
    for resolution in (plan.resolutions[0], plan.resolutions[-1]):  # notebook 03 compares
        for how in ("known", "rigid"):
            steps.registered(plan, subject, "T1w", "axial", resolution, how)
    for resolution in plan.resolutions:  # as notebook 04, so that sources are encoded once
        harmonization.harmonized_together(plan, subject, plan.experiments, resolution)
    for experiment in ("3D", *plan.experiments):
        scoring.scores(plan, subject, experiment)
        if experiment in ONE_ORIENTATION:
            scoring.frequencies(plan, subject, experiment)
"""

CELLS = """
import matplotlib
matplotlib.use("Agg")
import nbformat
import matplotlib.pyplot as plt
from helpers.runner import graph
from IPython.core.pylabtools import print_figure
from IPython.display import display
for task in graph.choose(graph.tasks(plan), ["04*"]):
    space = {"display": display}
    for cell in nbformat.read(task.notebook, 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
            if "parameters" in cell.metadata.get("tags", []):
                space |= task.parameters
            for number in plt.get_fignums():  # as a notebook does after each cell
                print_figure(plt.figure(number))
            plt.close("all")
"""

STUDY = """
from helpers.runner import run
from helpers.runner.cluster import Cluster
if __name__ == "__main__":
    outcome = run.run(plan, Cluster(workers=1), ["04*"])
    assert not outcome.failed and not outcome.skipped, outcome
"""


def scaling():
    """Ten subjects on 1 to 64 workers: a simulation with the real graph and measured durations; draws
    ``scaling`` beside the demo's figures.

    The durations are those of the demo's own log (`make demo` first). Each execution takes as long as one of
    its notebook that was measured, drawn at random.
    """
    from helpers.runner.scaling import draw, simulate

    plan = Study.from_toml(layout.ROOT / "studies" / "demo.toml")
    measured = {}
    for event in log.events(folders.folder(plan) / "report"):
        if event["event"] == "done":
            measured.setdefault(re.sub(r"sub-sim\d+|target", "sub", event["task"]), []).append(
                event["seconds"]
            )
    rng = np.random.default_rng(0)
    seconds = {
        task.name: float(rng.choice(measured[re.sub(r"sub-sim\d+|target", "sub", task.name)]))
        for task in graph.tasks(plan)
    }
    table = simulate(plan, seconds, [2**power for power in range(7)]).assign(study="preview, as in the demo")
    fig, _ = draw(table)
    fig.savefig(folders.figures_folder(plan) / "scaling.png", dpi=150)
    folders.save_tables(plan, {"scaling": table})
    for row in table.itertuples():
        yield (
            f"simulated: {row.workers} workers, {row.hours:.2f} h; bound {row.bound:.1f}",
            [row.speed_up],
            0.8 * row.bound,
        )


def panels():
    """How much faster the panels redraw than they have to: 200 ms after a slider's move, 1 s with a live
    harmonization, 2 s with super-resolution too."""
    from helpers import super_resolution

    subject = phantom.subject(1)
    images = {
        contrast: phantom.render(subject, scanners.scanner("study-1"), contrast, 1)
        for contrast in study.CONTRASTS
    }
    plane, brain = (grid.upright(volume, "coronal", 120) for volume in (images["T1w"], subject.brain))
    panel = profile_panel.ProfilePanel(plane, brain, rf_pulse.Pulse(), study.Resolution(5, 1.5))
    model = haca3.load(layout.MODELS / "harmonizer-small.pt", device="cpu")
    targets = {contrast: model.target(image) for contrast, image in images.items()}
    looked_at = live.scene(images, subject.brain)
    explorer = meeting.Explorer([1], lambda _: looked_at, model, targets, study.Resolution(5, 1.5))
    resolver = super_resolution.load(layout.MODELS / "super-resolver.pt")
    resolving = meeting.Explorer([1], lambda _: looked_at, model, targets, resolver.resolution, resolver)
    resolving.controls["super_resolution"].value = True
    for owner, control, values, allowed_s in (
        (panel, "gap", np.arange(0.5, 1.4, 0.1), 0.2),
        (panel, "tb", np.arange(6, 15), 0.2),
        (explorer, "thickness", np.arange(3, 4.5, 0.5), 1.0),
        (resolving, "up", (84, 92, 80), 2.0),
    ):
        measured = []
        for value in values:
            start = time.perf_counter()
            owner.controls[control].value = value
            measured.append(allowed_s / (time.perf_counter() - start))
        yield f"{type(owner).__name__} after a move of {control} / {allowed_s} s", measured, 1


def super_resolved():
    """Super-resolution of nine stacks: seconds allowed / taken, and mean squared error in the brain of others
    / its own."""
    from helpers import linear, super_resolution
    from helpers.super_resolution.linear_estimate import tikhonov_matrix

    subject = phantom.subject(1)
    images = [
        phantom.render(subject, scanners.scanner("study-1"), contrast, 1) for contrast in study.CONTRASTS
    ]
    for resolution, gain_db in ((study.Resolution(3, 0), 2.5), (study.Resolution(5, 1.5), 1.0)):
        cases = [(image, orientation) for image in images for orientation in study.ORIENTATIONS]
        stacks = [
            degradation.degrade(image, subject.affine, orientation, resolution)
            for image, orientation in cases
        ]
        start = time.perf_counter()
        resolver = super_resolution.train(stacks, resolution)
        taught, applied, errors = time.perf_counter() - start, [], {"cubic B-spline": [], "Tikhonov": []}
        for (image, orientation), (stack, affine) in zip(cases, stacks):
            axis = grid.AXIS[orientation]
            n = image.shape[axis]
            start = time.perf_counter()
            volume, _ = super_resolution.super_resolve(stack, affine, resolution, resolver, n)
            applied.append(time.perf_counter() - start)
            ours = np.mean((volume - image)[subject.brain] ** 2)
            matrices = degradation.back_matrix(n, resolution), tikhonov_matrix(n, resolution)
            for name, matrix in zip(errors, matrices):
                others = linear.along_axis(matrix, stack, axis)
                errors[name].append(np.mean((others - image)[subject.brain] ** 2) / ours)
        yield f"super-resolution {resolution.label}: 300 s / teaching", [300 / taught], 1
        yield (
            f"super-resolution {resolution.label}: 20 s / applying",
            [20 / seconds for seconds in applied],
            1,
        )
        for name, measured in errors.items():
            goal = 10 ** (gain_db / 10) if name == "cubic B-spline" else 1
            yield f"super-resolution {resolution.label}: MSE of {name} / ours", measured, round(goal, 2)


BENCHES = (degrade, harmonize, fuse, machinery, scaling, panels, super_resolved)


def main():
    print(f"{'times faster than the reference':60} {'min':>7} {'median':>7} {'goal':>7}")
    for bench in [each for each in BENCHES if each.__name__ in sys.argv[1:]] or BENCHES:
        for what, measured, goal in bench():
            median = float(np.median(measured))
            print(
                f"{what:60} {min(measured):7.1f} {median:7.1f} "
                f"{goal:7g}{'' if median >= goal else '  below the goal'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
