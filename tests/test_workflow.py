"""CI runs what the pages tell people to run, on the Pythons and versions that the package names."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def jobs() -> dict[str, Any]:
    workflow = yaml.safe_load(read(".github/workflows/tests.yml"))
    assert workflow["defaults"]["run"]["shell"] == "bash"
    return workflow["jobs"]


def commands(job: str) -> list[str]:
    return [step["run"] for step in jobs()[job]["steps"] if "run" in step]


def blocks(page: str) -> list[list[str]]:
    """Return the lines of each block of commands on a page."""
    return [
        block.splitlines() for block in re.findall(r"^```\n(.*?)^```$", read(page), re.M | re.S)
    ]


def without_comment(line: str) -> str:
    return line.partition("#")[0].replace('"$@"', "").strip()


def test_tests__commands__are_that_of_the_readme_and_the_rest() -> None:
    command, rest = commands("tests")
    assert [command] in blocks("README.md")
    assert rest == "pytest -m thorough"
    set_up, check = blocks("CONTRIBUTING.md")[:2]
    tests = [line for line in check if line.startswith("pytest")]
    assert [*map(without_comment, tests)] == ["pytest", rest]
    assert commands("checks") == [set_up[-1], *(line for line in check if line not in tests)]


def test_run_in_one_place__commands__are_those_of_contributing() -> None:
    lines = [without_comment(line) for line in read(".ci/run").splitlines()]
    assert [line for line in lines if line.startswith("pytest")] == ["pytest", "pytest -m thorough"]
    tools = {line.split()[0] for line in lines if line}
    assert {command.split()[0] for command in commands("checks")} - {"pip"} <= tools


def test_tests__pythons__are_those_that_the_package_names() -> None:
    matrix = jobs()["tests"]["strategy"]["matrix"]
    names = [re.fullmatch(r".* :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]]
    named = [found[1] for found in names if found]
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    others = {(each["os"], each["python"]) for each in matrix["include"]}
    systems = ("macos-latest", "windows-latest")
    assert others == {(system, python) for system in systems for python in (named[0], named[-1])}


def pins(path: str) -> dict[str, Version]:
    lines = [without_comment(line) for line in read(path).splitlines()]
    named = [line.split("==") for line in lines if line]
    return {name: Version(version) for name, version in named}


@pytest.mark.parametrize("page", ["tests/constraints.txt", "tests/constraints-oldest.txt"])
def test_constraints__each_version__is_one_that_the_package_allows(page: str) -> None:
    wanted = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    for requirement in map(Requirement, wanted):
        if version := pins(page).get(requirement.name):
            assert version in requirement.specifier, requirement.name


def test_oldest_constraints__each_floor__is_tried() -> None:
    tried = pins("tests/constraints-oldest.txt")
    del tried["torch"]  # of which only the build of tests/constraints.txt is tried
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    floors = {
        requirement.name: Version(bound.version)
        for requirement in map(Requirement, wanted)
        for bound in requirement.specifier
        if bound.operator == ">=" and requirement.name != "torch"
    }
    assert tried.keys() - floors.keys() == {"pyparsing"}
    for name, floor in floors.items():
        assert tried[name].release[: len(floor.release)] == floor.release, name
