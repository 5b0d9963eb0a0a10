"""Scheduling: bounds that any schedule keeps, on random graphs."""

from hypothesis import given, strategies as st

from helpers.pipeline import graph


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 14))
    needs = {str(n): [str(m) for m in draw(st.sets(st.integers(0, n - 1), max_size=3))] if n else [] for n in range(size)}
    return needs, {task: draw(st.integers(1, 50)) for task in needs}


@given(graphs(), st.integers(1, 6))
def test_no_schedule_beats_the_critical_path_or_the_workers_and_a_greedy_one_is_at_most_their_sum(study, workers):
    needs, seconds = study
    span, total = graph.makespan(needs, seconds, workers), sum(seconds.values())
    longest = sum(seconds[task] for task in graph.critical_path(needs, seconds))
    assert max(longest, total / workers) <= span + 1e-9
    assert span <= total / workers + longest * (1 - 1 / workers) + 1e-9  # Graham 1969


@given(graphs())
def test_one_worker_takes_the_sum_and_many_take_the_critical_path(study):
    needs, seconds = study
    assert graph.makespan(needs, seconds, 1) == sum(seconds.values())
    assert graph.makespan(needs, seconds, len(needs)) == sum(seconds[task] for task in graph.critical_path(needs, seconds))


@given(graphs())
def test_the_critical_path_is_a_chain(study):
    needs, seconds = study
    chain = graph.critical_path(needs, seconds)
    assert all(before in needs[task] for before, task in zip(chain, chain[1:]))


def test_what_is_needed_from_elsewhere_is_there():
    assert graph.makespan({"b": ["a"]}, {"b": 2}, 1) == 2
    assert graph.makespan({}, {}, 3) == 0
    assert graph.critical_path({}, {}) == []


@given(graphs())
def test_the_urgent_come_first_and_all_come_after_their_needs(study):
    needs, seconds = study
    order = graph.urgent_first(needs, seconds)
    assert sorted(order) == sorted(needs)
    assert all(order.index(need) < order.index(task) for task in needs for need in needs[task])


def test_what_others_wait_for_is_not_left_until_last():
    needs, seconds = {"a": [], "b": [], "c": [], "d": ["c"]}, {"a": 3, "b": 3, "c": 3, "d": 3}
    assert graph.makespan(needs, seconds, 2) == 9
    assert graph.makespan({task: needs[task] for task in graph.urgent_first(needs, seconds)}, seconds, 2) == 6
