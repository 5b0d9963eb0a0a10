"""How much faster a study is with more workers: simulated from the durations of its tasks, and its figure."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd

from helpers import drawing
from helpers.runner import graph, schedule
from helpers.study.file import Study


def simulate(plan: Study, seconds: dict[str, float], workers: Iterable[int]) -> pd.DataFrame:
    """How a study would scale: a simulation of its real graph with given durations, not a measurement.

    Parameters
    ----------
    plan : Study
        Its tasks and what they wait for.
    seconds : dict
        Task -> duration.
    workers : iterable of int
        Numbers of workers.

    Returns
    -------
    DataFrame
        ``workers``, ``hours``, ``speed_up`` over one worker, ``bound`` (the lesser of the workers and of the
        total over the critical path: no order of the tasks does better), ``critical_path_h``.
    """
    needs = graph.needs_of(graph.tasks(plan))
    needs = {name: needs[name] for name in schedule.urgent_first(needs, seconds)}
    total = sum(seconds[name] for name in needs)
    longest = sum(seconds[name] for name in schedule.critical_path(needs, seconds))
    rows = []
    for number in workers:
        span = schedule.makespan(needs, seconds, number)
        rows.append((number, span / 3600, total / span, min(number, total / longest), longest / 3600))
    return pd.DataFrame(rows, columns=["workers", "hours", "speed_up", "bound", "critical_path_h"])


def draw(table: pd.DataFrame):
    """Speed-up against the number of workers: a simulation, and the bound that no order of the tasks exceeds.

    Parameters
    ----------
    table : DataFrame
        As `simulate` gives it, with a column ``study``.
    """
    fig, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    workers = sorted(table.workers.unique())
    ax.plot(workers, workers, color="0.7", lw=1, ls="--", label="as many times faster as workers")
    for (study, rows), colour, marker in zip(
        table.groupby("study", sort=False),
        (drawing.BLUE, drawing.VERMILLION, drawing.GREEN),
        ("o", "s", "^"),
        strict=False,
    ):
        ax.plot(rows.workers, rows.bound, color=colour, lw=1, ls=":")
        ax.plot(rows.workers, rows.speed_up, color=colour, marker=marker, lw=1.8, label=study)
        for row in rows.iloc[[0, -1]].itertuples():
            took = f"{row.hours:.1f} h" if row.hours >= 1.5 else f"{60 * row.hours:.0f} min"
            ax.annotate(
                took,
                (row.workers, row.speed_up),
                (9, -4),
                textcoords="offset points",
                color=colour,
                fontsize=9,
            )
    ax.plot([], [], color="0.3", lw=1, ls=":", label="bound: workers, critical path")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(workers, [str(count) for count in workers])
    ax.set_yticks(workers, [str(count) for count in workers])
    ax.set_xlim(0.85, workers[-1] * 1.9)
    ax.set_xlabel("workers")
    ax.set_ylabel("speed-up over one worker")
    ax.set_title("Ten subjects: simulated from measured durations", fontsize=11)
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    return fig, ax
