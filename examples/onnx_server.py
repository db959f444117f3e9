"""Serve what `save_onnx` wrote, with numpy, onnxruntime and tokenizers alone: no torch, no skgpt.

    pip install numpy onnxruntime tokenizers
    python onnx_server.py news --port 8000
    curl -d '{"texts": ["a late goal won the match"]}' http://127.0.0.1:8000/classify

A folder that was fitted on several columns takes {"rows": [[...], ...]} instead, a list of the
columns' texts for each row, or {"rows": [{"title": ..., "body": ...}]} where they have names.
"""

import argparse
import json
from bisect import bisect_right
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

MAX_ROWS = 64  # in one request
MAX_BYTES = 2_000_000  # of a request's body


class Preparation:
    """From texts to token ids, as skgpt does it.

    Parameters
    ----------
    folder : str or path-like
    """

    def __init__(self, folder: Any) -> None:
        self.about = json.loads(Path(folder, "server.json").read_text("utf-8"))
        template = self.about["template"]
        self.words = [clean(word) for word in template["words"]]
        self.fields = template["fields"]  # which column stands behind each word but the last
        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        # A text that looks like a special token is a text.
        self.tokenizer.encode_special_tokens = True

    def ids_of(self, row: Any) -> list[int]:
        """Return the token ids of a row, cut to `max_length`."""
        prefix, suffix = self.about["prefix_ids"], self.about["suffix_ids"]
        longest = self.about["max_length"]
        room = max(1, longest - len(prefix) - len(suffix))
        cells = self.cells_of(row)
        ids = self.encode(self.render(cells))
        if len(ids) > room and self.about["cuts"] == "values":
            ids = self.encode_cut(cells, len(ids), room)
        return [*prefix, *ids[:room], *suffix][:longest] or [self.about["empty_id"]]

    def cells_of(self, row: Any) -> dict[int, str]:
        """Return the texts of the columns that the template uses."""
        names = self.about["columns"]
        used = sorted(set(self.fields))
        if isinstance(row, str):
            row = [row]
        if isinstance(row, dict) and names:
            row = [row.get(name) for name in names]
        if not isinstance(row, list) or len(row) <= used[-1]:
            raise ValueError(
                f"a row must have the columns {names or used}, in a list or by name; one alone may "
                f"be a text. Got {str(row)[:80]}"
            )
        if odd := [names[i] if names else i for i in used if not isinstance(row[i], str)]:
            raise ValueError(f"every column of a row must be a text; {odd} of one are none")
        return {i: clean(row[i]) for i in used}

    def render(self, cells: dict[int, str]) -> str:
        """Return the template with these texts in it."""
        pieces = [self.words[0]]
        for field, word in zip(self.fields, self.words[1:], strict=True):
            pieces += [cells[field], word]
        return "".join(pieces)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_cut(self, cells: dict[int, str], n_ids: int, room: int) -> list[int]:
        """Return the ids of a row whose texts lose their ends, a token of the longest at a time."""
        uses = [self.fields.count(i) for i in cells]
        sizes = [len(self.encode(cell)) for cell in cells.values()]
        budget = max(sum(uses), room - (n_ids - int(np.dot(sizes, uses))))
        while True:
            caps = share_out(budget, sizes, uses)
            cut = {i: self.head_of(cells[i], n) for i, n in zip(cells, caps, strict=True)}
            if budget == 0:
                cut = dict.fromkeys(cells, "")
            ids = self.encode(self.render(cut))
            if len(ids) <= room:
                return ids
            budget = max(0, budget - (len(ids) - room))

    def head_of(self, text: str, n_tokens: int) -> str:
        """Return the longest beginning of a text that is so many tokens by itself."""
        spans = self.tokenizer.encode(text, add_special_tokens=False).offsets
        kept = n_tokens
        if len(spans) <= n_tokens:
            return text
        while True:
            end = min(spans[kept - 1][1], spans[kept][0]) if kept else 0
            over = len(self.encode(text[:end])) - n_tokens
            if over <= 0 or kept == 0:
                return text[:end]
            kept = max(0, kept - over)


def share_out(budget: int, sizes: list[int], uses: list[int]) -> list[int]:
    """Return how many tokens each text may keep: all that are cut end at the same height."""

    def cost(height: int) -> int:
        return sum(min(size, height) * n for size, n in zip(sizes, uses, strict=True))

    height = bisect_right(range(max(sizes) + 1), budget, key=cost) - 1
    caps = [min(size, height) for size in sizes]
    rest = budget - cost(height)
    for i, (size, n) in enumerate(zip(sizes, uses, strict=True)):
        if size > height and rest >= n:
            caps[i] += 1
            rest -= n
    return caps


def clean(text: str) -> str:
    """Return valid Unicode: tokenizers raise on half a character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Model:
    """What `save_onnx` wrote: texts in, probabilities out.

    Parameters
    ----------
    folder : str or path-like
    threads : int, default=0
        Of ONNX Runtime; 0 is one for each core.
    """

    def __init__(self, folder: Any, threads: int = 0) -> None:
        self.preparation = Preparation(folder)
        self.about = self.preparation.about
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            Path(folder, "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def predict(self, rows: list[Any]) -> list[Any]:
        """Return an array for each output: (n, n_classes) of probabilities, or (n,) of numbers.

        Parameters
        ----------
        rows : list
            Of texts, or of lists or dicts of the columns' texts.
        """
        found = [self.preparation.ids_of(row) for row in rows]
        ids = np.full((len(rows), max(map(len, found))), self.about["pad_id"], dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(found):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})

    def labels(self, probabilities: list[Any]) -> list[Any]:
        """Return the label of each row; lists of them for several labels or several outputs."""
        each = []
        for classes, p in zip(self.about["classes"], probabilities, strict=True):
            if self.about["multilabel"]:
                each.append([[classes[i] for i in np.flatnonzero(row)] for row in p > 0.5])
            else:
                each.append([classes[i] for i in p.argmax(axis=1)])
        return each[0] if len(each) == 1 else [list(row) for row in zip(*each, strict=True)]


def answer(model: Model, body: bytes) -> dict[str, Any]:
    """Return what a request is answered with; raise ValueError if it is not as it must be."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a body must be JSON: {error}") from error
    rows = asked.get("rows", asked.get("texts")) if isinstance(asked, dict) else None
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_ROWS:
        raise ValueError(f'send {{"texts": [...]}}, of 1 to {MAX_ROWS} texts')
    found = model.predict(rows)
    if model.about["kind"] == "regressor":
        return {"values": found[0].tolist()}
    classes = model.about["classes"]
    lists = [each.tolist() for each in found]
    one = len(classes) == 1
    return {
        "classes": classes[0] if one else classes,
        "labels": model.labels(found),
        "probabilities": lists[0] if one else [list(row) for row in zip(*lists, strict=True)],
    }


class Handler(BaseHTTPRequestHandler):
    """Answers POST /classify, or any other path, with JSON."""

    protocol_version = "HTTP/1.1"
    model: Model

    def do_POST(self) -> None:
        """Answer a request: 400 with a sentence if it is not as it must be."""
        try:
            length = self.headers.get("Content-Length") or "0"
            if not length.isdecimal() or int(length) > MAX_BYTES:
                raise ValueError(f"a body must be of {MAX_BYTES} bytes at most. Got {length}")
            status, said = 200, answer(self.model, self.rfile.read(int(length)))
        except ValueError as error:
            status, said = 400, {"detail": str(error)}
            self.close_connection = True
        content = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve a folder until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if not (args.folder / "server.json").is_file():
        parser.error(f"{args.folder} must be a folder that save_onnx wrote: it has no server.json")
    Handler.model = Model(args.folder, args.threads)
    with ThreadingHTTPServer((args.host, args.port), Handler) as server:
        print(f"http://{args.host}:{server.server_port}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
