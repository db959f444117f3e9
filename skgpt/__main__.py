"""``python -m skgpt``: fetch a model, say what is here, show and clear the cache folder.

What a command needs is imported when it runs, so that the quick ones stay quick.
"""

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence

from skgpt.exceptions import SkgptError

_FAILED = 1
_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default the one that the process was given; return its exit status.

    The status is 0 if all went well and 1 if not, with the reason on stderr.
    """
    args = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a path may have letters that a terminal lacks
    try:
        return command(args)
    except SkgptError as error:
        sys.stderr.write(f"skgpt: {error}\n")
        return _FAILED
    except KeyboardInterrupt:
        sys.stderr.write("skgpt: interrupted\n")
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m skgpt", description="skgpt's model cache.")
    commands = parser.add_subparsers(required=True, metavar="{fetch,info,cache}")
    fetch = commands.add_parser("fetch", help="download and convert a model, if it isn't here yet")
    fetch.add_argument("model", help="an alias, like smollm2-135m")
    fetch.set_defaults(command=_fetch)
    info = commands.add_parser("info", help="versions, device, threads, cache folder")
    info.set_defaults(command=_info)
    cache = commands.add_parser("cache", help="which models are cached, and how large they are")
    cache.add_argument(
        "--clear",
        nargs="?",
        const=True,
        metavar="MODEL",
        help="remove that model, by the name that is shown or its alias; by default all of them",
    )
    cache.add_argument("--yes", action="store_true", help="remove without asking")
    cache.set_defaults(command=_cache)
    return parser


def _fetch(args: argparse.Namespace) -> int:
    from skgpt.pretrained.cache_folder import size_of
    from skgpt.pretrained.default_models import alias_folder, converted_folder, is_complete

    said = "was here already" if is_complete(converted_folder(args.model)) else "is here now"
    folder = alias_folder(args.model)
    _tell(f"{args.model} {said}: {folder} ({_megabytes(size_of(folder.resolve()))})")
    return 0


def _info(args: argparse.Namespace) -> int:
    from skgpt.device import hardware, optional_packages, versions
    from skgpt.pretrained.cache_folder import cached_entries
    from skgpt.pretrained.default_models import cache_folder

    entries = cached_entries()
    size = _megabytes(sum(entry.n_bytes for entry in entries))
    cache = {"folder": str(cache_folder()), "holds": f"{_counted(len(entries))}, {size}"}
    parts: Mapping[str, Mapping[str, str]] = {
        "Versions": versions(),
        "Hardware": hardware(),
        "Cache": cache,
        "Optional packages": optional_packages(),
    }
    width = max(len(name) for part in parts.values() for name in part)
    for title, part in parts.items():
        _tell(title)
        for name, value in part.items():
            _tell(f"  {name:<{width}}  {value}")
    return 0


def _cache(args: argparse.Namespace) -> int:
    from skgpt.pretrained.cache_folder import cached_entries, chosen, remove
    from skgpt.pretrained.default_models import cache_folder

    entries = cached_entries()
    if args.clear is not None:
        entries = chosen(entries, None if args.clear is True else args.clear)
    _tell(f"{cache_folder()} has {_counted(len(entries))}{':' if entries else ''}")
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        _tell(f"  {entry.name:<{width}}  {_megabytes(entry.n_bytes):>10}  {entry.what}")
    if args.clear is None or not entries:
        return 0
    if not (args.yes or _agreed(f"Remove {_counted(len(entries))}?")):
        _tell("Nothing was removed.")
        return _FAILED
    for entry in entries:
        remove(entry)
    _tell(f"Removed {_megabytes(sum(entry.n_bytes for entry in entries))}.")
    return 0


def _agreed(question: str) -> bool:
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    # Nothing at all where there is nobody to ask; no file where stdin was closed.
    answer = "" if sys.stdin is None else sys.stdin.readline()
    if not answer.endswith("\n"):
        _tell("")
    return answer.strip().lower() in ("y", "yes")


def _counted(n: int) -> str:
    return f"{n or 'no'} model{'' if n == 1 else 's'}"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
