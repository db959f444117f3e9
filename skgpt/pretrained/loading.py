"""From a model's name to its weights and tokenizer: read once, kept, and shared by networks.

Two fitted estimators may be alive at once, so a network never gets the module that was read: it
gets a copy of the module tree whose parameters are the same, read-only tensors.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from skgpt._files import opened_by
from skgpt.caching import Store
from skgpt.device import total_memory
from skgpt.exceptions import ModelNotFoundError, ModelNotSupportedError, SkgptError
from skgpt.pretrained.default_models import (
    ALIASES,
    alias_folder,
    downloads_allowed,
    quiet_transformers,
    read_gguf,
)
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.trunk.attention import pack
from skgpt.trunk.capabilities import Capabilities, probe
from skgpt.trunk.layers import PROBE_ERRORS, copy_with_tensors, find_blocks, truncate
from skgpt.trunk.llama import use_fast_blocks

_CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(frozen=True)
class PretrainedModel:
    """A pretrained trunk with its tokenizer; everything that is built on it shares them."""

    model: str  # the name it was asked for by
    revision: str | None
    trunk: Any  # transformers' model, read-only; `copy_trunk` gives a network its own
    tokenizer: TextTokenizer
    config: dict[str, Any]  # uncut: a pickle makes the skeleton of the trunk from it
    downloadable: bool  # another machine can get the same weights by name
    fingerprint: str  # of the weights
    capabilities: Capabilities
    shared: bool  # its tensors are kept for other fits; those out of a pickle are not
    full_depth: int  # blocks of the model of that name; a trunk out of a pickle may have fewer
    identity: object = field(default_factory=object)  # a cache key that keeps nothing alive

    @property
    def depth(self) -> int:
        """Number of blocks that are here."""
        return len(find_blocks(self.trunk))

    @property
    def max_positions(self) -> int | None:
        """Tokens that a text may have, None if the model sets no limit."""
        limit = getattr(self.trunk.config, "max_position_embeddings", None)
        rope = getattr(self.trunk.config, "rope_parameters", None) or {}
        by_kind = [kind for kind in rope.values() if isinstance(kind, dict)]  # of layers
        for kind in (rope, *by_kind):
            if kind.get("rope_type") == "longrope":
                # One text beyond these turns all texts of its batch by the angles of long ones.
                limit = kind["original_max_position_embeddings"]
        for name, module in self.trunk.named_modules():
            padding = getattr(module, "padding_idx", None)
            if name.endswith("position_embeddings") and padding is not None:
                return int(module.num_embeddings) - padding - 1  # RoBERTa counts on from there
        return limit if isinstance(limit, int) and limit > 0 else None

    def fp32_copy(self, name: str, device: torch.device) -> Tensor:
        """Return a copy of one of the trunk's parameters, for training."""
        tensor = self.trunk.get_parameter(name).detach()
        return tensor.to(device, torch.float32, copy=True)

    def copy_trunk(self, n_layers: int, dtype: torch.dtype, device: torch.device) -> Any:
        """Return the first blocks as a module tree of the caller's own, on the shared tensors.

        It is in evaluation mode, and no parameter requires a gradient. Buffers (rotary
        frequencies, ...) keep their precision if they can.
        """
        trunk = copy_with_tensors(self.trunk, self.tensors(dtype, device))
        truncate(trunk, n_layers)
        trunk.config.use_cache = False
        if self.capabilities.supports_packing:
            pack(trunk)
        if self.capabilities.supports_fast_blocks:
            use_fast_blocks(find_blocks(trunk))
        return trunk.eval()

    def tensors(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Return all parameters and buffers in this precision on this device: read-only."""
        if not self.shared:
            return self._cast(dtype, device)
        key = (self.trunk, dtype, str(device))  # a module's hash is its identity
        store: Store[dict[str, Tensor]] = Store.named(
            f"weights on {device}", lambda: total_memory(device) // 4
        )
        return store.get_or_make(
            key,
            make=lambda: self._cast(dtype, device),
            size_of=lambda tensors: sum(tensor.nbytes for tensor in tensors.values()),
        )

    def _cast(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        cast = {
            name: p.detach().to(device, dtype if p.is_floating_point() else p.dtype)
            for name, p in self.trunk.named_parameters()
        }
        for name, b in self.trunk.named_buffers():
            with_weights = self.capabilities.casts_buffers and b.is_floating_point()
            cast[name] = b.to(device, dtype if with_weights else b.dtype)
        return cast


_MODELS: Store[PretrainedModel] = Store("base models", total_memory(_CPU) // 4)


def load_pretrained(model: str | os.PathLike[str], revision: str | None = None) -> PretrainedModel:
    """Return the model of that name, reading it only if this process doesn't hold it.

    `model` is an alias, a hub id, a transformers folder or a .gguf file; `revision` is the hub's.
    """
    model = os.fspath(model)
    path, local = place_of(model)
    key = (model, revision, _stamp(path) if local else None)
    return _MODELS.get_or_make(
        key,
        make=lambda: _read(model, revision),
        size_of=lambda found: sum(p.nbytes for p in found.trunk.parameters()),
    )


def place_of(model: str) -> tuple[Path, bool]:
    """Return a model's name as a path, and whether it is one that exists."""
    path = Path(model).expanduser()
    return path, bool(model) and path.exists() and model not in ALIASES


def read_model_files(
    model: str, revision: str | None, read: Callable[[str, bool], T], wanted: str
) -> T:
    """Call `read(where, local_files_only)`: first for what is on disk, then for what the hub has.

    Any error that is not ours becomes a ModelNotFoundError, which begins with what is `wanted`.
    """
    path, local = place_of(model)
    on_hub = not local and model not in ALIASES
    if on_hub:
        _refuse_misnomers(model, wanted)
    where = str(path) if local else model
    try:
        if local and path.is_dir() and not (path / "config.json").is_file():
            raise FileNotFoundError(f"it has no config.json{opened_by(path)}")
        with quiet_transformers():
            try:
                return read(where, True)
            except (OSError, ValueError) as error:
                if isinstance(error, SkgptError) or not (on_hub and downloads_allowed()):
                    raise
                _ask_hub(model, revision)
                return read(where, False)
    except (SkgptError, MemoryError):
        raise
    except Exception as error:  # transformers raises errors of any class for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if local:
            raise ModelNotFoundError(f"{wanted} {model!r} can't be read: {reason}") from error
        at = f" at revision {revision!r}" if revision else ""
        fetched = "could not be fetched" if downloads_allowed() else "downloads are not allowed"
        raise ModelNotFoundError(
            f"{wanted} {model!r}{at} is no existing path, not in the local cache, and {fetched} "
            f"here: {reason} Check the spelling, or name a local folder."
        ) from error


_OUT_OF_REACH: Store[str] = Store("hub out of reach", 1 << 20)


def _ask_hub(model: str, revision: str | None) -> None:
    """Raise if the hub can't be reached or doesn't have a model: one try, where a read makes many.

    This process doesn't try to reach it again: each fit of a grid would wait for that.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:  # transformers doesn't ask then
        return
    (known,) = _OUT_OF_REACH.find_many([constants.ENDPOINT])
    if known is not None:
        raise ConnectionError(known)
    try:
        get_hf_file_metadata(hf_hub_url(model, "config.json", revision=revision))
    except HfHubHTTPError:  # it has answered
        raise
    except Exception as error:
        said = (
            f"the hub is out of reach ({type(error).__name__}) and won't be asked again before "
            "skgpt.clear_cache(). Where there is no network, HF_HUB_OFFLINE=1 spares the wait."
        )
        _OUT_OF_REACH.put_many({constants.ENDPOINT: said}, len)
        raise ConnectionError(said) from error


def _refuse_misnomers(model: str, wanted: str) -> None:
    """Raise for a name that can't be a hub id: nobody need be asked for it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    aliases = {alias.casefold(): alias for alias in ALIASES}
    asked = model.casefold().replace("_", "-")
    like = [alias for alias in aliases if asked and alias.startswith(asked)]
    like = like or difflib.get_close_matches(asked, aliases, n=1, cutoff=0.8)
    is_path = model.endswith(".gguf")
    try:
        validate_repo_id(model)
    except HFValidationError:
        is_path = True
    if is_path:
        reason = "there is no such file or folder"
    elif like and "/" not in model:
        reason = f"did you mean {aliases[like[0]]!r}?"
    else:
        return
    raise ModelNotFoundError(f"{wanted} Got {model!r}: {reason}")


def _stamp(path: Path) -> tuple[Any, ...]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(f.name, f.stat()) for f in files if f.is_file()]
    resolved = str(path.resolve())
    return (resolved, *((name, s.st_mtime_ns, s.st_size, s.st_ino) for name, s in stats))


def _read(model: str, revision: str | None) -> PretrainedModel:
    path, local = place_of(model)

    def read(where: str, local_files_only: bool) -> PretrainedModel:
        if local and path.is_file():
            trunk, tokenizer = read_gguf(path)
        else:
            where = str(alias_folder(model)) if model in ALIASES else where
            trunk, tokenizer = _from_pretrained(where, revision, local_files_only)
        return make_pretrained(
            trunk,
            TextTokenizer(tokenizer, shared=True),
            model=model,
            revision=revision,
            downloadable=not local,
            shared=True,
        )

    wanted = (
        f"`model` must be an alias ({', '.join(sorted(ALIASES))}), a hub id, a transformers folder "
        "(config.json, safetensors weights, tokenizer files) or a .gguf file."
    )
    return read_model_files(model, revision, read, wanted)


def _from_pretrained(where: str, revision: str | None, local_files_only: bool) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    options: dict[str, Any] = {
        "revision": revision or "main",
        "local_files_only": local_files_only,
        "trust_remote_code": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    trunk, report = AutoModel.from_pretrained(
        where, dtype="auto", output_loading_info=True, **options
    )
    missing = [name for name in report["missing_keys"] if "pooler" not in name]
    if missing:
        raise ModelNotSupportedError(
            f"The checkpoint {where!r} must hold every weight of {type(trunk).__name__}. "
            f"{len(missing)} are missing, {missing[0]!r} the first: it belongs to another "
            "architecture or is incomplete."
        )
    return trunk, tokenizer


def make_pretrained(
    trunk: Any,
    tokenizer: TextTokenizer,
    *,
    model: str,
    revision: str | None,
    downloadable: bool,
    shared: bool,
    config: dict[str, Any] | None = None,
    full_depth: int | None = None,
) -> PretrainedModel:
    """Freeze a trunk that was read, probe and fingerprint it."""
    trunk.eval().requires_grad_(False)
    depth = len(find_blocks(trunk))
    if shared and not downloadable:
        # The file of a folder of the user's may be written over while its weights are mapped.
        for parameter in trunk.parameters():
            parameter.data = parameter.data.clone()
    try:
        capabilities = probe(trunk)
    except SkgptError:
        raise
    except PROBE_ERRORS as error:
        raise ModelNotSupportedError(
            f"The model must take token ids and return hidden states, one for each. "
            f"{type(trunk).__name__} can't be used like that: {error!r}. Use a decoder or encoder."
        ) from error
    return PretrainedModel(
        model=model,
        revision=revision,
        trunk=trunk,
        tokenizer=tokenizer,
        config=_plain(trunk.config) if config is None else config,
        downloadable=downloadable,
        fingerprint=hash_tensors(trunk.config.model_type, trunk.state_dict()),
        capabilities=capabilities,
        shared=shared,
        full_depth=full_depth or depth,
    )


def _plain(config: Any) -> dict[str, Any]:
    own = ("_name_or_path", "name_or_path", "transformers_version")  # of a machine, not a model
    return {key: value for key, value in config.to_dict().items() if key not in own}


def hash_tensors(kind: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash the names, the shapes and a sample of every tensor: cheap, and a changed base is seen.

    The configuration is left out: a new release of transformers adds to it and changes nothing.
    """
    digest = hashlib.sha256(kind.encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        middle = flat.numel() // 2
        # Whole runs, not every n-th value: weights that are mapped from a file stay unread.
        sample = torch.cat([flat[:256], flat[middle : middle + 256], flat[-256:]])
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.to(torch.float32).cpu().numpy().tobytes())
    return digest.hexdigest()


# What transformers reads of a folder: configuration, weights, tokenizer.
_READ_FROM = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    "*.model",
)


def hash_model_files(model: str) -> str | None:
    """Return a hash of the files that a local model is read from, None for any other name."""
    path, local = place_of(model)
    if not local or (path.is_dir() and not (path / "config.json").is_file()):
        return None
    files = [path]
    if path.is_dir():
        files = sorted({f for pattern in _READ_FROM for f in path.glob(pattern) if f.is_file()})
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        whole.update(f"{file.name};{digest};".encode())
    return whole.hexdigest()
