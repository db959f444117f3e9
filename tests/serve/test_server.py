"""The server of examples/serve, started for real: nothing lost, nothing mixed up, a clean end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skgpt
from skgpt import GPTTextClassifier
from tests.helpers import columns_of_classes, make, make_text_data
from tests.serve.server import ROOT, SERVE, Reply, RunningServer, preloaded, reply_of, running
from tests.test_persistence import SHOUT, shout

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SLOW_SECONDS, AT_ONCE = 0.3, 3  # of the slow server

TOLERANCE = 1e-5  # of probabilities in fp32: who shares a batch may move the last digits


@pytest.fixture(scope="module")
def slow(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return a server that takes its time, one text after the other, and soon has too many."""
    log = tmp_path_factory.mktemp("log") / "slow"
    with running(saved, log, SLOW_SECONDS, batch_texts=1, queue_texts=AT_ONCE) as started:
        yield started


def refusal(variables: dict[str, str], folder: Path) -> str:
    """Return what a server says that is not to come up."""
    own = {f"SKGPT_SERVE_{name}": value for name, value in variables.items()}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SERVE)],
        cwd=folder,
        env=os.environ | own | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def requests_of(n: int) -> list[list[str]]:
    """Return texts for n requests, one to three each, no two the same."""
    texts = make_text_data(n_classes=3, seed=1).X
    rng = np.random.default_rng(0)
    return [
        [f"{text} {i} {j}" for j, text in enumerate(rng.choice(texts, rng.integers(1, 4)))]
        for i in range(n)
    ]


def at_once(server: RunningServer, bodies: list[list[str]]) -> list[Reply]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda texts: server.post({"texts": texts}), bodies))


def test_server__one_request__the_digits_of_predict(server: RunningServer, saved: Path) -> None:
    clf = skgpt.load(saved)
    texts = ["the match of the league", "", "\U0001f680 \0 \u4e2d", "half a pair \ud800"]
    reply = server.post({"texts": texts})
    assert reply.status == 200
    assert np.array_equal(reply.content["probabilities"], clf.predict_proba(texts))
    assert reply.content["labels"] == clf.predict(texts).tolist()
    assert reply.content["classes"] == clf.classes_.tolist()


def test_server__200_requests__each_gets_its_own_answer(server: RunningServer, saved: Path) -> None:
    clf = skgpt.load(saved)
    bodies = requests_of(200)
    replies = at_once(server, bodies)
    assert [reply.status for reply in replies] == [200] * 200
    for texts, reply in zip(bodies, replies, strict=True):
        alone = clf.predict_proba(texts)
        np.testing.assert_allclose(reply.content["probabilities"], alone, rtol=0, atol=TOLERANCE)
        assert reply.content["labels"] == clf.predict(texts).tolist()
    # Texts of which the answers could be mixed up: no two rows are within the tolerance.
    rows = np.concatenate([reply.content["probabilities"] for reply in replies])
    distances = np.abs(rows[:, None] - rows[None]).max(axis=2) + np.eye(len(rows))
    assert (distances.min(axis=1) > TOLERANCE).mean() > 0.9


def test_gunicorn__a_model_loaded_before_the_fork__200_requests_are_answered(
    saved: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gunicorn")
    clf = skgpt.load(saved)
    bodies = requests_of(200)
    with preloaded(saved, tmp_path, n_workers=2) as server:
        replies = at_once(server, bodies)
    assert [reply.status for reply in replies] == [200] * 200
    assert len({reply.content["worker"] for reply in replies}) == 2
    expected = clf.predict_proba([text for texts in bodies for text in texts])
    rows = np.concatenate([reply.content["probabilities"] for reply in replies])
    np.testing.assert_allclose(rows, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("body", "status", "said"),  # status 0: 400 or 422, as the framework likes
    [
        ({"texts": []}, 422, "Got an empty list"),
        ({"texts": ["a", None]}, 422, "texts[1]: Input should be a valid string. Got null."),
        ({"texts": "a text"}, 422, "texts: Input should be a valid list. Got a string."),
        ({"text": ["a"]}, 422, "texts: Field required"),
        ({"texts": ["a"], "top": 3}, 422, "top: Extra inputs are not permitted"),
        ({"texts": ["a"], "k" * 1_000_000: 3}, 422, "kkk: Extra inputs are not permitted"),
        (["a text"], 422, "Got a list"),
        (b"", 422, "Field required"),
        (b'{"texts": ["a"', 422, "It is no JSON"),
        (b"[" * 100_000, 0, ""),
        (b'{"texts": [' + b"9" * 10_000 + b"]}", 0, ""),
        ({"texts": ["a"] * 65}, 422, "at most 64 texts. Got 65"),
        ({"texts": ["a", "b" * 20_001]}, 422, "texts[1] has 20001"),
        ({"texts": ["a" * 10_000_000]}, 413, "at most 2000000 bytes"),
    ],
)
def test_server__bad_input__clear_answer(
    server: RunningServer, body: Any, status: int, said: str
) -> None:
    reply = server.post(body)
    assert reply.status in ([status] if status else [400, 422])
    assert set(reply.content) == {"detail"}
    assert said in reply.content["detail"]
    assert "Traceback" not in str(reply.content)
    assert len(str(reply.content)) < 400
    assert server.post({"texts": ["a"]}).status == 200


def test_server__other_content_types_paths_and_methods__refused(server: RunningServer) -> None:
    wrong_type = server.post({"texts": ["a"]}, **{"Content-Type": "text/plain"})
    assert wrong_type.status == 422
    assert "Content-Type application/json" in wrong_type.content["detail"]
    assert server.get("/nothing").status == 404
    assert server.get("/classify").status == 405


def test_server__a_batch_fails__500_for_it_alone(slow: RunningServer) -> None:
    replies = at_once(slow, [["fine"], ["poison"], ["fine as well"]])
    assert [reply.status for reply in replies] == [200, 500, 200]
    assert "a reason" not in str(replies[1].content)
    assert "the server's log" in replies[1].content["detail"]
    assert slow.post({"texts": ["fine"]}).status == 200
    assert "RuntimeError: a reason for the log alone" in slow.log.read_text("utf-8")


def test_server__more_than_may_wait__503_and_when_to_come_back(slow: RunningServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        # More than the limit, but alone.
        first = pool.submit(slow.post, {"texts": ["a"] * (AT_ONCE + 1)})
        slow.wait_until_unanswered(AT_ONCE + 1)
        reply = slow.post({"texts": ["b"]})
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert first.result().status == 200
    assert slow.post({"texts": ["b"]}).status == 200


def test_server__clients_that_go_away__others_are_answered(slow: RunningServer) -> None:
    logged = slow.log.read_text("utf-8")
    for _ in range(AT_ONCE - 1):
        gone = slow.connect()
        gone.request("POST", "/classify", b'{"texts": ["a"]}', {"Content-Type": "application/json"})
        gone.close()
    assert slow.post({"texts": ["a"]}).status == 200
    slow.wait_until_unanswered(0)
    assert slow.log.read_text("utf-8") == logged


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_server__sigterm__accepted_requests_are_answered(saved: Path, tmp_path: Path) -> None:
    bodies = requests_of(20)
    n_texts = sum(map(len, bodies))
    with (
        running(saved, tmp_path / "log", slow_seconds=0.3, batch_texts=4) as server,
        ThreadPoolExecutor(len(bodies)) as pool,
    ):
        late = server.connect()  # has sent half of a request when the stop comes
        late.putrequest("POST", "/classify")
        late.putheader("Content-Type", "application/json")
        late.putheader("Content-Length", str(len(b'{"texts": ["a"]}')))
        late.endheaders(b'{"texts": ')
        replies = [pool.submit(server.post, {"texts": texts}) for texts in bodies]
        server.wait_until_unanswered(n_texts)
        server.process.send_signal(signal.SIGTERM)
        assert [reply.result().status for reply in replies] == [200] * len(bodies)
        late.send(b'["a"]}')
        assert reply_of(late).status == 503
        late.close()
        assert server.process.wait(30) == -signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            server.post({"texts": ["too late"]})
        assert "Traceback" not in server.log.read_text("utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_server__no_time_left_to_stop__what_waits_gets_a_503(saved: Path, tmp_path: Path) -> None:
    with (
        running(saved, tmp_path / "log", slow_seconds=4, batch_texts=1, stop_seconds=1) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        replies = [pool.submit(server.post, {"texts": ["a"]}) for _ in range(2)]
        server.wait_until_unanswered(2)
        server.process.send_signal(signal.SIGTERM)
        for reply in replies:
            assert reply.result().status == 503
            assert "stopping" in reply.result().content["detail"]
        server.process.wait(30)


def test_server__label_sets__each_text_gets_a_list(tiny_llama: str, tmp_path: Path) -> None:
    texts = make_text_data(n_classes=2).X
    y = np.stack([np.arange(len(texts)) % n == 0 for n in (2, 3)], axis=1).astype(int)
    clf = GPTTextClassifier(tiny_llama, max_epochs=1, device="cpu", random_state=0).fit(texts, y)
    skgpt.save(clf, tmp_path / "saved")
    with running(tmp_path / "saved", tmp_path / "log") as server:
        content = server.post({"texts": texts[:8].tolist()}).content
    assert content["classes"] == [0, 1]
    indicator = [[label in own for label in (0, 1)] for own in content["labels"]]
    assert np.array_equal(indicator, clf.predict(texts[:8]))


def test_server__port_in_use__says_so_before_a_model_is_read(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal({"FOLDER": "nowhere", "PORT": str(port)}, tmp_path)
    assert f"free. Got 127.0.0.1, port {port}: " in said


def test_server__can_not_start__one_sentence_and_no_trace(tmp_path: Path) -> None:
    assert "there is no such folder" in refusal({"FOLDER": "nowhere"}, tmp_path)


# Pipelines, and rows of several columns.


@pytest.fixture(scope="module")
def of_columns(
    tiny_llama: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, Path]]:
    """Return a server of a Pipeline that was fitted on a table with a column of numbers."""
    folder = tmp_path_factory.mktemp("columns")
    texts, y = make_text_data(n_classes=2)
    table = pd.DataFrame({"subject": texts, "stars": np.arange(len(y)) % 5, "body": texts[::-1]})
    clf = GPTTextClassifier(
        tiny_llama, template="{0}\n{2} ({1})", max_epochs=1, device="cpu", precision="fp32"
    )
    pipe = make_pipeline(
        FunctionTransformer(), ColumnTransformer([("all", "passthrough", [0, 1, 2])]), clf
    )
    skgpt.save(pipe.fit(table, y), folder / "saved")
    with running(folder / "saved", folder / "log") as started:
        yield started, folder / "saved"


def rows_at_once(n: int) -> list[dict[str, Any]]:
    texts = make_text_data(n_classes=2, seed=1).X
    return [
        {"subject": f"{texts[i % 40]} {i}", "stars": i % 5, "body": texts[(i + 7) % 40]}
        for i in range(n)
    ]


def test_server__rows_of_several_columns__each_gets_its_own_answer(
    of_columns: tuple[RunningServer, Path],
) -> None:
    server, folder = of_columns
    rows = rows_at_once(24)
    rows[3] = {name: rows[3][name] for name in ("body", "stars", "subject")}  # in another order
    with ThreadPoolExecutor(8) as pool:
        replies = [*pool.map(lambda row: server.post({"rows": [row]}), rows)]
    assert [reply.status for reply in replies] == [200] * 24
    pipe = skgpt.load(folder)
    expected = pipe.predict_proba(pd.DataFrame(rows, columns=["subject", "stars", "body"]))
    found = np.concatenate([reply.content["probabilities"] for reply in replies])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_server__several_outputs__each_has_its_own_label(tiny_llama: str, tmp_path: Path) -> None:
    texts, y = make_text_data(n_classes=3)
    clf = make(tiny_llama, max_epochs=1, precision="fp32").fit(texts, columns_of_classes(y))
    skgpt.save(clf, tmp_path / "saved")
    with running(tmp_path / "saved", tmp_path / "log") as server:
        answer = server.post({"texts": texts[:5].tolist()}).content
    assert answer["classes"] == [each.tolist() for each in clf.classes_]
    assert answer["labels"] == clf.predict(texts[:5]).tolist()
    rows = [np.hstack(row) for row in answer["probabilities"]]
    expected = np.hstack(clf.predict_proba(texts[:5]))
    np.testing.assert_allclose(rows, expected, rtol=0, atol=TOLERANCE)


ROW = {"subject": "a", "stars": 3, "body": "b"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"texts": ["a"]}, 'JSON like {"rows": [{"subject": "a text", "stars": "a text"'),
        ({"rows": ["a"]}, "rows[0]: Input should be a valid dictionary"),
        ({"rows": []}, "`rows` must hold at least one"),
        ({"rows": [ROW, {"subject": "a"}]}, "columns ['subject', 'stars', 'body']. rows[1] has"),
        ({"rows": [ROW | {"k" * 10**6: "x"}]}, "rows[0] has ['body', 'kkk"),
        ({"rows": [ROW, ROW | {"body": None}]}, "rows[1]['body'] must be a text, a finite"),
        ({"rows": [ROW | {"body": ["x"]}]}, "rows[0]['body'] must be a text"),
        ({"rows": [ROW | {"stars": float("nan")}]}, "rows[0]['stars'] must be a text, a finite"),
        ({"rows": [ROW | {"stars": -float("inf")}]}, "rows[0]['stars'] must be"),
        ({"rows": [ROW | {"body": "b" * 20_000}]}, "rows[0] has 20001"),
        ({"rows": [ROW] * 65}, "at most 64 texts. Got 65"),
    ],
)
def test_server__bad_rows__clear_answer(
    body: Any, said: str, of_columns: tuple[RunningServer, Path]
) -> None:
    reply = of_columns[0].post(body)
    assert reply.status == 422
    assert said in reply.content["detail"]
    assert len(reply.content["detail"]) < 400


def test_server__a_pipeline_with_a_function__serves_it_only_if_it_is_trusted(
    tiny_llama: str, tmp_path: Path
) -> None:
    X, y = make_text_data(n_classes=2)
    clf = GPTTextClassifier(tiny_llama, max_epochs=1, device="cpu", precision="fp32")
    pipe = make_pipeline(FunctionTransformer(shout), clf).fit(X, y)
    skgpt.save(pipe, tmp_path / "saved")
    said = refusal({"FOLDER": str(tmp_path / "saved"), "PORT": "0"}, tmp_path)
    assert SHOUT in said and "trusted" in said
    with running(tmp_path / "saved", tmp_path / "log", trusted=SHOUT) as server:
        reply = server.post({"texts": X[:3].tolist()})
    np.testing.assert_allclose(
        reply.content["probabilities"], pipe.predict_proba(X[:3]), rtol=0, atol=TOLERANCE
    )
