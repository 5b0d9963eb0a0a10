"""The order of tasks that wait for each other, and how long they take together.

Tasks are names; what they need and how long they take is given, so that nothing here knows of notebooks.
"""

import heapq
from collections.abc import Mapping, Sequence


def makespan(needs: Mapping[str, Sequence[str]], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds until the last task ends, if each free worker takes the first task in order whose needs are
    met.

    Parameters
    ----------
    needs : dict
        Task -> the tasks that must have ended before; in the order in which they are taken. Needs that are no
        keys are met.
    seconds : dict
        Task -> its duration.
    workers : int
        Tasks at a time.

    Examples
    --------
    >>> makespan({"a": [], "b": ["a"], "c": ["a"]}, {"a": 1, "b": 2, "c": 3}, workers=2)
    4.0
    """
    order = {task: number for number, task in enumerate(needs)}
    missing = {task: {need for need in wanted if need in needs} for task, wanted in needs.items()}
    followers = {task: [] for task in needs}
    for task, wanted in missing.items():
        for need in wanted:
            followers[need].append(task)
    ready = [order[task] for task, wanted in missing.items() if not wanted]
    heapq.heapify(ready)
    names, running, now = list(needs), [], 0.0
    while ready or running:
        while ready and len(running) < workers:
            task = names[heapq.heappop(ready)]
            heapq.heappush(running, (now + seconds[task], task))
        now, ended = heapq.heappop(running)
        for task in followers[ended]:
            missing[task].discard(ended)
            if not missing[task]:
                heapq.heappush(ready, order[task])
    return float(now)


def critical_path(needs: Mapping[str, Sequence[str]], seconds: Mapping[str, float]) -> list[str]:
    """The chain of tasks that takes longest: with any number of workers a study is not done before it is.

    Tasks are listed after their needs, as in `makespan`.

    Examples
    --------
    >>> critical_path({"a": [], "b": ["a"], "c": ["a"]}, {"a": 1, "b": 2, "c": 3})
    ['a', 'c']
    """
    end, before = {}, {}
    for task, wanted in needs.items():
        before[task] = max((need for need in wanted if need in end), key=end.get, default=None)
        end[task] = seconds[task] + end.get(before[task], 0)
    chain, task = [], max(end, key=end.get, default=None)
    while task is not None:
        chain.append(task)
        task = before[task]
    return chain[::-1]


def urgent_first(needs: Mapping[str, Sequence[str]], seconds: Mapping[str, float]) -> list[str]:
    """The tasks, first those from which it is longest to the end: what others wait for is not left until
    last.

    Tasks are listed after their needs, as in `makespan`, and still are in the result.

    Examples
    --------
    >>> urgent_first({"a": [], "b": [], "c": ["b"]}, {"a": 2, "b": 1, "c": 2})
    ['b', 'a', 'c']
    """
    after = dict.fromkeys(needs, 0.0)  # task -> seconds from its end to the end of all
    for task in reversed(list(needs)):
        for need in needs[task]:
            if need in after:
                after[need] = max(after[need], seconds[task] + after[task])
    return sorted(needs, key=lambda task: -(seconds[task] + after[task]))
