"""Containers: what can be seen of their files without building them."""

import json
import os
import re
import shutil
import subprocess

import pytest

from helpers import layout

ROOT = layout.ROOT
DOCKERFILE = (ROOT / "Dockerfile").read_text()
APPTAINER = (ROOT / "apptainer.def").read_text()
SCRIPTS = sorted((ROOT / "containers").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_plain_shell_that_stops_at_the_first_error(script):
    assert script.read_text().startswith("#!/bin/sh\n") and "\nset -eu\n" in script.read_text()
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_both_containers_run_the_same_scripts_on_the_same_system():
    names = [f"{path.name}" for path in SCRIPTS]
    assert names == ["install.sh", "packages.sh"]
    assert all(name in text for name in names for text in (DOCKERFILE, APPTAINER))
    (docker,), (apptainer,) = (
        re.findall(pattern, text, re.M)
        for pattern, text in ((r"^FROM (\S+:\S+)", DOCKERFILE), (r"^From: (\S+)", APPTAINER))
    )
    assert docker == apptainer == "debian:bookworm-slim"


def test_the_entry_point_is_the_command_and_nobody_is_root():
    steps = re.findall(r"^([A-Z]+) (.*)$", DOCKERFILE, re.M)
    assert {step for step, _ in steps} <= {
        "FROM",
        "COPY",
        "RUN",
        "ARG",
        "ENV",
        "USER",
        "WORKDIR",
        "ENTRYPOINT",
    }
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["resolution-matters"]
    user = dict(steps)["USER"]
    assert user != "root" and re.search(rf"useradd\b.* {user}$", DOCKERFILE, re.M)
    # What runs as root is over before the user is.
    names = [step for step, _ in steps]
    assert max(n for n, name in enumerate(names) if name == "RUN") < names.index("USER")
    assert re.search(r"%runscript\n +exec resolution-matters \"\$@\"\n", APPTAINER)


def test_the_devcontainer_uses_a_stage_and_a_target_that_are_there():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    build = settings["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert re.search(rf"^FROM \S+ AS {build['target']}$", DOCKERFILE, re.M)
    assert f" {settings['remoteUser']}\n" in DOCKERFILE
    # What it runs first is what every target of the Makefile needs.
    makefile = (ROOT / "Makefile").read_text()
    assert settings["postCreateCommand"] == f"make {re.search(r'^STAMP := (.*)$', makefile, re.M)[1]}"


def test_what_git_ignores_is_not_copied_into_an_image():
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    not_copied = set((ROOT / ".dockerignore").read_text().splitlines())
    assert {".venv", "data/derivatives", "docs/_build", "docs/notebooks", "docs/api"} <= ignored & not_copied


def _no_debian_root() -> str:
    """Why no root of Debian can be made here."""
    if os.geteuid() != 0:
        return "only root can make a Debian root"
    return "" if shutil.which("debootstrap") else "no debootstrap: apt install debootstrap"


@pytest.mark.slow
@pytest.mark.skipif(bool(_no_debian_root()), reason=_no_debian_root())
def test_the_packages_of_a_container_can_be_had_and_are_enough_for_its_python(tmp_path):
    # PyTorch apart, which is gigabytes: that it installs is what every `make` tests.
    root = tmp_path / "root"
    subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(root)], check=True, capture_output=True
    )
    shutil.copytree(ROOT / "containers", root / "opt" / "resolution-matters" / "containers")

    def inside(*command):
        done = subprocess.run(["chroot", str(root), *command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout[-500:]}{done.stderr[-1500:]}"
        return done.stdout

    inside("sh", "/opt/resolution-matters/containers/packages.sh")
    version = inside("python3", "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])")
    assert version.strip() in re.findall(r":: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    inside("python3", "-m", "venv", "/opt/venv")
    (root / "tmp" / "x.cpp").write_text("int main() { return 0; }\n")
    inside("g++", "-march=native", "-shared", "-fPIC", "-o", "/tmp/x.so", "/tmp/x.cpp")
