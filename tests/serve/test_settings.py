"""Settings out of environment variables, and what docs/serving.md says of them and of requests."""

import re
from dataclasses import MISSING, fields

import pytest

from examples.serve.settings import PREFIX, Settings, SettingsError
from tests.serve.server import HOST, RunningServer
from tests.test_docs import ROOT, run, sections

GUIDE = "serving.md"
SHOWN = "http://127.0.0.1:8000"


def test_settings__variables__read_by_their_names_alone() -> None:
    found = Settings.from_environment(
        {
            "SKGPT_SERVE_FOLDER": "news",
            "SKGPT_SERVE_PORT": "0",
            "SKGPT_SERVE_BATCH_WAIT_MS": "2.5",
            "SKGPT_SERVE_HOST": "",
            "SKGPT_CACHE": "elsewhere",
        }
    )
    assert found == Settings("news", port=0, batch_wait_ms=2.5)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("PORT", "65536", "must be an int from 0 to 65535. Got '65536'"),
        ("MAX_TEXTS", "0", "must be an int >= 1. Got '0'"),
        ("BATCH_WAIT_MS", "nan", "must be a number from 0 to 60000. Got 'nan'"),
        ("MAX_TEXT", "5", "Got SKGPT_SERVE_MAX_TEXT: rename or unset it"),
        ("FOLDER", "", "SKGPT_SERVE_FOLDER must name a folder"),
    ],
)
def test_settings__out_of_range_or_unknown__named(name: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"SKGPT_SERVE_FOLDER": "news", f"SKGPT_SERVE_{name}": text})
    assert f"SKGPT_SERVE_{name}" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.allow_hosts([HOST])
def test_guide__all_requests__answered_as_it_says(server: RunningServer) -> None:
    found = sections(GUIDE)
    snippets = [snippet for snippets in found.values() for snippet in snippets]
    assert sum(SHOWN in snippet for snippet in snippets) == 1
    here = f"http://{HOST}:{server.port}"
    run([snippet.replace(SHOWN, here) for snippet in snippets], {"__name__": "guide"})


def test_guide__its_table_of_settings__has_each_with_its_default() -> None:
    text = (ROOT / "docs" / GUIDE).read_text("utf-8")
    shown = dict(re.findall(rf"^\| `({PREFIX}\w+)` \| ([^|]*?) \|", text, re.MULTILINE))
    assert shown == {
        PREFIX + each.name.upper(): "(required)" if each.default is MISSING else str(each.default)
        for each in fields(Settings)
    }
