"""`python -m skgpt`: what each command says and does; the guide's examples give what they say."""

import doctest
import io
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from skgpt.__main__ import main
from skgpt.pretrained.default_models import ALIASES, converted_folder
from tests.pretrained.fake_weights import ALIAS as FAKE
from tests.pretrained.fake_weights import install, make_llama, wheel_of, write_gguf
from tests.pretrained.test_cache_folder import ALIAS, plant

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "command_line.md"

_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_BYTES = 541_617_388  # what the default model takes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Done(NamedTuple):
    """What a command returned and said."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, answer: str = "") -> Done:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patched.setattr(sys, "stdin", io.StringIO(answer))
        try:
            status = main(arguments)
        except SystemExit as wrong_usage:
            status = int(str(wrong_usage.code))
    return Done(status, out.getvalue(), err.getvalue())


def test_cache__nothing_there__says_so_and_makes_no_folder(cache: Path) -> None:
    done = run("cache")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{cache} has no models\n"
    assert run("cache", "--clear").returncode == 0
    assert not cache.exists()


@pytest.mark.parametrize(
    ("answer", "removed"),
    [("y\n", True), ("yes\n", True), ("\n", False), ("", False)],
)
def test_cache_clear__asked__only_a_yes_removes(cache: Path, answer: str, removed: bool) -> None:
    folder = plant(converted_folder(ALIAS))
    done = run("cache", "--clear", answer=answer)
    assert "Remove 1 model? [y/N]" in done.stdout
    assert done.returncode == (0 if removed else 1)
    assert folder.exists() != removed
    assert ("Nothing was removed." in done.stdout) != removed


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's syntax")
def test_cache_clear__no_stdin_at_all__removes_nothing(cache: Path) -> None:
    folder = plant(converted_folder(ALIAS))
    command = f'"{sys.executable}" -m skgpt cache --clear <&-'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Nothing was removed." in done.stdout
    assert folder.exists()


def test_cache__loads_neither_torch_nor_transformers(cache: Path) -> None:
    plant(converted_folder(ALIAS))
    command = [sys.executable, "-X", "importtime", "-m", "skgpt", "cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "skgpt.pretrained.cache_folder" in loaded
    assert not {"torch", "transformers", "sklearn"} & loaded


def test_fetch__an_installed_package__converted_once_and_then_found(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_llama())
    install(tmp_path / "tiny.gguf", tmp_path / "site")
    monkeypatch.setitem(ALIASES, FAKE, wheel_of(tmp_path / "tiny.gguf"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    first, second = run("fetch", FAKE), run("fetch", FAKE)
    assert first.stdout.startswith(f"{FAKE} is here now: {converted_folder(FAKE)} (0.")
    assert "converting" in first.stderr
    assert second == (0, first.stdout.replace("is here now", "was here already"), "")


def test_fetch__no_such_alias__names_those_there_are(cache: Path) -> None:
    done = run("fetch", "smollm")
    assert (done.returncode, done.stdout) == (1, "")
    assert "skgpt: An alias must be one of " in done.stderr and ALIAS in done.stderr
    assert not cache.exists()


def test_fetch__no_network__the_reason_and_what_to_do_without_a_trace(cache: Path) -> None:
    done = run("fetch", ALIAS)  # pip has no index in these tests
    assert (done.returncode, done.stdout) == (1, "")
    assert "To do it by hand, run `pip install" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("cache").stdout == f"{cache} has no models\n"


@pytest.mark.skipif(sys.platform == "win32", reason="folders are closed by other means there")
def test_cache__a_file_in_the_folders_place__the_reason_without_a_trace(cache: Path) -> None:
    cache.write_text("a file")
    done = run("cache")
    assert done.returncode == 1
    assert done.stderr.startswith("skgpt: The cache folder must be one that can be read.")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [(), ("fetch",), ("clear",), ("cache", "--force")])
def test_command_line__wrong_arguments__usage(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m skgpt")


def examples() -> list[tuple[str, str]]:
    """Return each command of the guide with what is shown below it."""
    found = []
    for block in _CONSOLE.findall(GUIDE.read_text("utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command, shown))
    return found


@pytest.mark.parametrize(("command", "shown"), examples())
def test_guide__each_command__shows_what_it_says(cache: Path, command: str, shown: str) -> None:
    folder = plant(converted_folder(ALIAS))
    with (folder / "model.safetensors").open("r+b") as file:  # a hole takes no disk
        file.truncate(_BYTES - (folder / "skgpt-source.json").stat().st_size)
    start = "python -m skgpt "
    assert command.startswith(start)
    done = run(*command.removeprefix(start).split(), answer="y\n")
    said = done.stdout.replace(str(cache), "/home/ada/.cache/skgpt").replace("[y/N] ", "[y/N] y\n")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(shown, said, options), said
