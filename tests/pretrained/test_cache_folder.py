"""What is cleared out of a cache folder: models, whole, and nothing that is somebody else's."""

import json
import os
from pathlib import Path

import pytest

from skgpt.exceptions import StorageError
from skgpt.pretrained.cache_folder import cached_entries, chosen, remove, size_of
from skgpt.pretrained.default_models import SOURCE_FILE, cache_lock, converted_folder
from tests.helpers import needs_links

ALIAS = "smollm2-135m"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def plant(folder: Path, alias: str = ALIAS, n_bytes: int = 1000) -> Path:
    """Lay out what a conversion leaves; return the folder."""
    folder.mkdir(parents=True)
    note = json.dumps({"alias": alias}).encode()
    (folder / SOURCE_FILE).write_bytes(note)
    (folder / "model.safetensors").write_bytes(b"x" * (n_bytes - len(note)))
    return folder


def plant_what_is_not_ours(cache: Path) -> list[Path]:
    """Lay out what looks a little like a model; return all of it."""
    elsewhere = plant(cache.parent / "elsewhere")
    (cache / "notes.txt").write_text("mine")
    plant(cache / "my-model")  # a note of ours, in a folder of another name
    plant(cache / "other-0123456789ab-v1", alias="another")
    (cache / "retired-0123456789ab-v1").mkdir()  # no note, and no alias
    (cache / f"{ALIAS}-0123456789ab-v9").write_text("a file of such a name")
    (cache / "states").mkdir()
    (cache / ".hidden.tmp").mkdir()
    (cache / "link").symlink_to(elsewhere)
    (cache / f".{ALIAS}-0123456789ab-v1.7-00.tmp").symlink_to(elsewhere)
    converted_folder(ALIAS).with_suffix(".lock").touch()
    return sorted([*cache.rglob("*"), *elsewhere.rglob("*")])


def test_cached_entries__models_of_each_kind__told_with_their_sizes(cache: Path) -> None:
    plant(converted_folder(ALIAS), n_bytes=1000)
    plant(cache / "retired-0123456789ab-v1", alias="retired", n_bytes=500)
    (cache / f"{ALIAS}-0123456789ab-v0").mkdir()
    plant(cache / f".{ALIAS}-0123456789ab-v1.77-ab.tmp" / "draft", n_bytes=300)
    found = {entry.name: (entry.alias, entry.what, entry.n_bytes) for entry in cached_entries()}
    assert found == {
        converted_folder(ALIAS).name: (ALIAS, "model", 1000),
        "retired-0123456789ab-v1": ("retired", "model", 500),
        f"{ALIAS}-0123456789ab-v0": (ALIAS, "model, incomplete", 0),
        f".{ALIAS}-0123456789ab-v1.77-ab.tmp": (ALIAS, "unfinished, or being made", 300),
    }


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"\xff", b'{"alias": 3}'])
def test_cached_entries__a_note_that_is_none__not_a_model(cache: Path, note: bytes) -> None:
    folder = plant(cache / "retired-0123456789ab-v1", alias="retired")
    assert len(cached_entries()) == 1
    (folder / SOURCE_FILE).write_bytes(note)
    assert cached_entries() == []


@needs_links
def test_remove__all__leaves_what_is_not_ours(cache: Path) -> None:
    kept = plant_what_is_not_ours(cache)
    assert cached_entries() == []
    plant(converted_folder(ALIAS))
    plant(cache / f".{ALIAS}-0123456789ab-v1.77-ab.tmp")
    for entry in chosen(cached_entries(), None):
        remove(entry)
        remove(entry)  # gone already: nothing to do
    there = [*cache.rglob("*"), *(cache.parent / "elsewhere").rglob("*")]
    assert {path for path in there if path.suffix != ".lock"} == {
        path for path in kept if path.suffix != ".lock"
    }
    assert (cache / "notes.txt").read_text() == "mine"


@needs_links
def test_remove__a_linked_model__the_link_goes_and_its_target_stays(cache: Path) -> None:
    target = plant(cache.parent / "large_disk")
    converted_folder(ALIAS).symlink_to(target)
    (entry,) = cached_entries()
    assert (entry.what, entry.n_bytes) == ("model, a link", size_of(converted_folder(ALIAS)))
    assert entry.n_bytes == 0  # what removing it frees
    remove(entry)
    assert not os.path.lexists(converted_folder(ALIAS))
    assert size_of(target) == 1000


@needs_links
def test_remove__links_within_a_model__are_not_followed(cache: Path) -> None:
    outside = plant(cache.parent / "outside")
    folder = plant(converted_folder(ALIAS), n_bytes=800)
    (folder / "folder").symlink_to(outside)
    (folder / "file").symlink_to(outside / "model.safetensors")
    (entry,) = cached_entries()
    assert entry.n_bytes == 800
    remove(entry)
    assert not folder.exists()
    assert size_of(outside) == 1000


def test_remove__being_converted__refused_and_left(cache: Path) -> None:
    folder = plant(converted_folder(ALIAS))
    work = plant(cache / f".{folder.name}.77-ab.tmp")
    with cache_lock(folder, 0):
        for entry in cached_entries():
            with pytest.raises(StorageError, match="converting the same model: wait"):
                remove(entry)
    assert size_of(folder) == size_of(work) == 1000


def test_remove__killed_half_way__no_half_of_a_model_and_the_rest_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(converted_folder(ALIAS))
    (entry,) = cached_entries()
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove(entry)
    assert not converted_folder(ALIAS).exists()
    (rest,) = cached_entries()
    assert rest.what == "unfinished, or being made"
    remove(rest)
    assert cached_entries() == []


@pytest.mark.parametrize("name", ["../elsewhere", "..", ".", "", "my-model", "/", "states"])
@needs_links
def test_chosen__no_model_of_that_name__refused(cache: Path, name: str) -> None:
    plant_what_is_not_ours(cache)
    plant(converted_folder(ALIAS))
    with pytest.raises(StorageError, match=f"There is {ALIAS}"):
        chosen(cached_entries(), name)


def test_chosen__a_name_or_an_alias__what_goes_by_it(cache: Path) -> None:
    newest = plant(converted_folder(ALIAS))
    older = plant(cache / f"{ALIAS}-0123456789ab-v0")
    retired = plant(cache / "retired-0123456789ab-v1", alias="retired")

    def named(name: str | None) -> set[Path]:
        return {entry.path for entry in chosen(cached_entries(), name)}

    assert named(ALIAS) == {newest, older}
    assert named(newest.name) == {newest}
    assert named(None) == {newest, older, retired}
