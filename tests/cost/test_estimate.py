"""What a fit will cost, as text, as HTML and as plain values."""

from dataclasses import replace

import pytest

from skgpt.cost import FitEstimate, duration, percent

ESTIMATE = FitEstimate(
    model="<a & b>",
    device="cpu",
    precision="fp32",
    n_layers=12,
    max_length=128,
    n_texts=1000,
    n_held_out=100,
    n_tokens=90_000,
    tokens_per_text={"min": 5.0, "50 %": 70.0, "max": 900.0},
    n_cut=250,
    tokens_cut=10_000,
    trainable_weights=14_000_000,
    frozen_weights=60_000_000,
    n_epochs=3,
    n_steps=90,
    early_stopping=False,
    seconds={"frozen_layers": 30.0, "head_first": 0.0, "epochs": 90.0},
    seconds_per_1000_predictions=45.0,
    memory={"weights": 300_000_000, "learning": 200_000_000, "states": 0, "activations": 500},
    disk=0,
    classes_assumed=2,
    advice=("less <b>is</b> more.",),
)


def test_repr__each_line__says_its_number() -> None:
    lines = repr(ESTIMATE).splitlines()
    assert lines[0] == "A fit of <a & b>, 12 layers, on cpu in fp32"
    said = dict(line.strip().split("  ", 1) for line in lines[1:-2])
    said = {name: text.strip() for name, text in said.items()}
    assert said["texts"] == "1,000, 100 of them held out"
    assert said["per text"] == "min: 5, 50 %: 70, max: 900"
    assert said["texts cut"] == "25 % at max_length=128, which loses 10 % of all tokens"
    assert said["time"] == "about 2 min 0 s (frozen layers 30 s, epochs 1 min 30 s)"
    assert said["memory"] == "about 500.0 MB (weights 300.0 MB, learning 200.0 MB, " + (
        "activations 0.5 kB)"
    )
    assert lines[-2:] == [
        "  - less <b>is</b> more.",
        "  - 2 classes are assumed, as there is no y.",
    ]


def test_repr__early_stopping_and_states_on_disk__are_told() -> None:
    shown = repr(replace(ESTIMATE, early_stopping=True, disk=3_000_000_000))
    assert "at most 90 in 3 epochs" in shown
    assert "at most 2 min 0 s" in shown
    assert "and 3.0 GB on disk" in shown


def test_html__what_users_name__is_escaped() -> None:
    shown = ESTIMATE._repr_html_()
    assert "&lt;a &amp; b&gt;" in shown and "<a" not in shown
    assert "&lt;b&gt;is&lt;/b&gt;" in shown and "<b>" not in shown
    assert shown.count("<tr>") == shown.count("</tr>") == len(repr(ESTIMATE).splitlines()) - 3
    assert "<ul>" not in replace(ESTIMATE, advice=(), classes_assumed=None)._repr_html_()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0.1 s"),
        (4.26, "4.3 s"),
        (9.96, "10 s"),
        (59.7, "1 min 0 s"),
        (3599.8, "1 h 0 min"),
        (5400, "1 h 30 min"),
    ],
)
def test_duration__across_units__never_shows_sixty(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0 %"), (0.001, "under 1 %"), (0.714, "71 %"), (0.999, "over 99 %"), (1, "100 %")],
)
def test_percent__near_the_ends__is_neither_none_nor_all(share: float, said: str) -> None:
    assert percent(share) == said
