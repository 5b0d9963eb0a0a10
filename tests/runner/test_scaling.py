"""The simulated scaling of a study and its figure."""

import pandas as pd
import pytest

from helpers.runner import graph, scaling
from helpers.study.file import Study

TEN = tuple(range(1, 11))


def test_a_scaling_is_bounded_by_workers_and_critical_path():
    plan = Study(subjects=TEN)
    table = scaling.simulate(plan, {task.name: task.cost_s for task in graph.tasks(plan)}, [1, 2, 4, 64])
    # Sums of some hundred times, in another order each: their last digits differ.
    assert table.speed_up[0] == pytest.approx(1)
    assert (table.speed_up <= table.bound + 1e-9).all()
    assert (table.speed_up.diff()[1:] >= -1e-9).all()
    assert (table.hours >= table.critical_path_h - 1e-9).all()


def test_a_scaling_says_that_it_is_simulated_and_how_long_one_worker_and_all_take():
    table = pd.DataFrame(
        {
            "workers": [1, 2, 4],
            "hours": [3.0, 1.5, 0.8],
            "speed_up": [1, 2, 3.75],
            "bound": [1, 2, 4],
            "study": "preview",
        }
    )
    fig, ax = scaling.draw(table)
    assert "simulated" in ax.get_title()
    assert [text.get_text() for text in ax.texts] == ["3.0 h", "48 min"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]
