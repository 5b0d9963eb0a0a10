"""What several test files share: one folder of results, so that subjects are simulated once per session."""

import pytest


@pytest.fixture(scope="session")
def results_dir(tmp_path_factory):
    """Output folder that the tests of stages and notebooks fill together, each finding what others made."""
    return tmp_path_factory.mktemp("results")
