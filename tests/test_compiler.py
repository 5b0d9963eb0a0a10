"""Programs that are compiled where they run: kept for later, and done without where that cannot be."""

import subprocess

import pytest

from helpers import compiler
from helpers.pipeline import models
from helpers.study.file import Study

SOURCE = 'extern "C" int answer() { return 42; }'


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "program.cpp"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def built(source):
    program, why = compiler.library.__wrapped__(source)
    if program is None:
        pytest.skip(f"compiled programs: {why}; on Debian: apt install g++")
    return program


def test_a_program_is_compiled_once_for_all_processes_and_again_when_it_changes(
    built, source, tmp_path, monkeypatch
):
    assert built.answer() == 42
    folder, commands, run = tmp_path / "cache" / "resolution-matters", [], subprocess.run
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(
        compiler.subprocess,
        "run",
        lambda command, **options: commands.append(command) or run(command, **options),
    )
    assert compiler.library.__wrapped__(source)[0].answer() == 42
    assert not any("-shared" in command for command in commands)
    source.write_text(SOURCE.replace("42", "43"))
    assert compiler.library.__wrapped__(source)[0].answer() == 43
    assert len(list(folder.iterdir())) == 2


def test_a_cache_that_cannot_be_used_is_done_without(built, source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiler.library.__wrapped__(source)[0].answer() == 42
    loaded = compiler.ctypes.CDLL

    def refused(path):
        if "kept" in path:
            raise OSError(
                f"{path}: failed to map segment from shared object"
            )  # as in a folder that is mounted noexec
        return loaded(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    monkeypatch.setattr(compiler.ctypes, "CDLL", refused)
    assert compiler.library.__wrapped__(source)[0].answer() == 42


def test_without_a_compiler_or_the_right_to_load_what_it_makes_there_is_a_reason(built, source, monkeypatch):
    def refused(path):
        raise OSError(f"{path}: failed to map segment from shared object")

    for module, name, value, reason in (
        (compiler.ctypes, "CDLL", refused, "makes nothing that can be loaded here"),
        (compiler.shutil, "which", lambda name: None, "there is no C++ compiler here"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            program, why = compiler.library.__wrapped__(source)
        assert program is None and reason in why


@pytest.mark.parametrize(
    "settings, compiled", [({}, True), ({"compiled": False}, False), ({"precision": "bfloat16"}, False)]
)
def test_keys_and_sidecars_say_what_is_really_used(settings, compiled, monkeypatch):
    plan = Study(**settings)
    monkeypatch.setattr(
        models.compiler, "library", lambda source: (object(), "") if source.is_file() else None
    )
    assert models.network_options(plan)["compiled"] is compiled
    monkeypatch.setattr(models.compiler, "library", lambda source: (None, "there is no C++ compiler here"))
    assert models.network_options(plan)["compiled"] is False
