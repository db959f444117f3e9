"""Memory stays flat: many fits in one process hold no more than a few did."""

import subprocess
import sys

import pytest

_FITS = """
import sys
import psutil
from skgpt import GPTTextClassifier
folder, trainable = sys.argv[1], sys.argv[2]
words = ["goal match coach", "bank profit shares"]
texts = [f"{words[i % 2]} {' and so on' * (i % 17)}" for i in range(120)]
labels = [i % 2 for i in range(120)]
clf = GPTTextClassifier(folder, early_stopping=True, scoring="accuracy", max_epochs=2)
clf.set_params(trainable_layers=trainable if trainable == "all" else int(trainable))
held = []
for seed in range(20):
    clf.set_params(random_state=seed).fit(texts, labels).predict(texts)
    held.append(psutil.Process().memory_info().rss / 2**20)
print(max(held[2:]) - held[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["1", "all"])
def test_resident_memory__after_twenty_fits__is_what_it_was_after_two(
    trainable: str, tiny_llama: str
) -> None:
    # Kernels that oneDNN keeps for every shape of a product once made this 700 MB.
    done = subprocess.run(
        [sys.executable, "-c", _FITS, tiny_llama, trainable],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64
