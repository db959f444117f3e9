"""The requests that docs/serving.md shows, sent to a server; the defaults it names."""

import re
from dataclasses import MISSING, fields

import pytest

from examples.serve.settings import PREFIX, Settings
from tests.serve.server import HOST, RunningServer
from tests.test_docs import ROOT, run, sections

pytestmark = pytest.mark.allow_hosts([HOST])

GUIDE = "serving.md"
SHOWN = "http://127.0.0.1:8000"


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
