"""The progress of a running study: a bar, the notebooks that run, the remaining time."""

import statistics
import sys
import time

from helpers.runner import execution, graph, schedule


class Progress:
    """A bar for the study, and below it a line for each notebook that runs. Without a terminal: a line for
    each finished notebook."""

    LINES = 8

    def __init__(self, wanted: list[graph.Task], expected: dict[str, float], workers: int):
        self.wanted, self.expected, self.workers = wanted, dict(expected), workers
        self.needs = graph.needs_of(wanted)
        self.began, self.ended, self.pace = {}, 0, []
        self.terminal = sys.stderr.isatty()

    def __enter__(self):
        from tqdm import tqdm

        form = "{percentage:3.0f}% |{bar:24}| {elapsed}{postfix}"
        self.bar = tqdm(total=sum(self.expected.values()), bar_format=form, disable=not self.terminal)
        rows = min(self.LINES, self.workers)
        self.rows = [
            tqdm(bar_format="{desc}", position=row + 1, leave=False, disable=not self.terminal)
            for row in range(rows)
        ]
        return self

    def __exit__(self, *_):
        for row in self.rows[::-1]:
            row.close()
        self.bar.close()

    def start(self, task: graph.Task) -> None:
        self.began[task.name] = time.monotonic()

    def skip(self, task: graph.Task) -> None:
        self._over(task)

    def end(self, task: graph.Task, result: execution.Execution) -> None:
        del self.began[task.name]
        if not result.error and result.images >= task.images:
            self.pace.append(result.seconds / self.expected[task.name])
        self._over(task)
        if not self.terminal:
            minutes = f"{result.seconds / 60:.1f} min"
            print(
                f"{task.name}: {result.error or f'done in {minutes}'}; {self._left()}",
                file=sys.stderr,
                flush=True,
            )

    def _over(self, task: graph.Task) -> None:
        self.ended += 1
        self.bar.update(self.expected[task.name])
        del self.needs[task.name]

    def _left(self) -> str:
        pace, now = statistics.median(self.pace or [1]), time.monotonic()
        # A notebook that takes longer than expected has one second left.
        left = {
            name: max(self.expected[name] * pace - (now - self.began.get(name, now)), 1)
            for name in self.needs
        }
        minutes = schedule.makespan(self.needs, left, self.workers) / 60
        return f"{self.ended}/{len(self.wanted)} notebooks, about {minutes:.0f} min left"

    def show(self) -> None:
        if self.terminal:
            self.bar.set_postfix_str(self._left())
            lines = [
                f"  {name}  {(time.monotonic() - began) / 60:.1f} of about {self.expected[name] / 60:.1f} min"
                for name, began in self.began.items()
            ]
            if len(lines) > len(self.rows):
                lines[len(self.rows) - 1 :] = [f"  … and {len(lines) - len(self.rows) + 1} more"]
            for row, line in zip(self.rows, [*lines, *[""] * len(self.rows)], strict=False):
                row.set_description_str(line)
