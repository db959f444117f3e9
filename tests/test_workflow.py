"""The hosted workflow runs what the pages tell people to run, on the Pythons that are named."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def jobs() -> dict[str, Any]:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))
    assert workflow["defaults"]["run"]["shell"] == "bash"
    return workflow["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def blocks(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text("utf-8")
    return [block.splitlines() for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)]


def test_tests__command__is_that_of_the_readme() -> None:
    (command,) = commands(jobs()["tests"])
    assert [command] in blocks("README.md")


def test_checks__commands__are_those_of_contributing() -> None:
    set_up, check = blocks("CONTRIBUTING.md")[:2]
    assert commands(jobs()["checks"]) == [set_up[-1], *(line for line in check if line != "pytest")]


def test_checks__tools__are_those_of_the_run_in_one_place() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    tools = {"ruff", "mypy", "sphinx-build", "pytest"}
    assert {line.split()[0] for line in lines if line.strip()} >= tools
    assert {command.split()[0] for command in commands(jobs()["checks"])} == (
        tools - {"pytest"} | {"pip"}
    )


def test_tests__pythons__are_those_that_the_package_names() -> None:
    matrix = jobs()["tests"]["strategy"]["matrix"]
    named = [
        line.rpartition(" ")[2]
        for line in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
    ]
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    others = {(each["os"], each["python"]) for each in matrix["include"]}
    assert others == {
        (system, python)
        for system in ("macos-latest", "windows-latest")
        for python in (named[0], named[-1])
    }
