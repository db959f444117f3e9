"""How many folds of a trial go ahead: pruners replayed on scores of small networks, in minutes.

Twenty trials, five folds, eight epochs, as in `pruning.py`, but of networks with one hidden layer
over 200 dimensions of TF-IDF: AdamW, warm-up and a linear fall, two learning rates and weight decay
drawn at random; the first 16 words of 300 texts. Every trial is trained whole. Pruners are then
told the mean score of the folds that go ahead after each epoch, in five random orders of the
trials, and the epochs counted. What a pruner's search would choose, by the mean over all folds of
the trials that it left, is judged on 1,000 texts of the test split: the mean of its folds' models.

    python examples/benchmarks/folds_ahead.py
    python examples/benchmarks/folds_ahead.py --draws 1 --orders 2
"""

import argparse

import numpy as np
import optuna
import torch
from _arms import print_table
from _data import load_news
from numpy.typing import NDArray
from optuna.trial import TrialState
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from skgpt.tuning.study import PRUNERS

N_TRIALS, N_FOLDS, N_EPOCHS, BATCH = 20, 5, 8, 16
N_TEXTS, N_TEST, N_WORDS = 300, 1000, 16
WIDTH, HIDDEN = 200, 64
Task = tuple[Tensor, Tensor, Tensor, Tensor]  # states and labels, to learn from and to judge by


def task(name: str, seed: int) -> Task:
    """Return a draw of a data set; labels with less than six texts are left out."""
    texts, topics, test_texts, test_topics = *load_news(name, "train"), *load_news(name, "test")  # type: ignore[arg-type]
    if name == "20ng":  # six groups
        topics, test_topics = (np.char.partition(t, ".")[:, 0] for t in (topics, test_topics))
    rng = np.random.default_rng(seed)
    rows, test = rng.permutation(len(texts))[:N_TEXTS], rng.permutation(len(test_texts))[:N_TEST]
    labels, counts = np.unique(topics[rows], return_counts=True)
    labels = labels[counts >= 6]
    rows, test = rows[np.isin(topics[rows], labels)], test[np.isin(test_topics[test], labels)]

    def begin(some: NDArray[np.object_]) -> list[str]:
        return [" ".join(text.split()[:N_WORDS]) for text in some]

    words = TfidfVectorizer(sublinear_tf=True)
    svd = TruncatedSVD(WIDTH, random_state=0)
    svd.fit(words.fit_transform(begin(texts[rng.permutation(len(texts))[:3000]])))
    states, judged = (
        svd.transform(words.transform(begin(some))) for some in (texts[rows], test_texts[test])
    )
    scale = states.std()
    return (
        torch.from_numpy(states / scale).float(),
        torch.from_numpy(np.searchsorted(labels, topics[rows])),
        torch.from_numpy(judged / scale).float(),
        torch.from_numpy(np.searchsorted(labels, test_topics[test])),
    )


def train(
    states: Tensor, labels: Tensor, judged: list[tuple[Tensor, Tensor]], rates: list[float]
) -> list[list[float]]:
    """Return the accuracies on each of `judged` after each epoch."""
    generator = torch.Generator().manual_seed(0)
    first = (torch.randn(WIDTH, HIDDEN, generator=generator) / WIDTH**0.5).requires_grad_()
    head = torch.zeros(HIDDEN, int(labels.max()) + 1, requires_grad=True)
    groups = [{"params": [first], "lr": rates[0]}, {"params": [head], "lr": rates[1]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=rates[2], fused=True)
    n_steps = -(-len(states) // BATCH) * N_EPOCHS
    warmup = n_steps // 10

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 1 - (step - warmup) / (n_steps - warmup)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    accuracies = []
    for _ in range(N_EPOCHS):
        for rows in torch.randperm(len(states), generator=generator).split(BATCH):
            optimizer.zero_grad()
            logits = torch.nn.functional.gelu(states[rows] @ first) @ head
            torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            found = [(torch.nn.functional.gelu(x @ first) @ head).argmax(1) for x, _ in judged]
        accuracies.append(
            [float((a == b).float().mean()) for a, (_, b) in zip(found, judged, strict=True)]
        )
    return accuracies


def curves(name: str, seed: int) -> NDArray[np.float64]:
    """Return accuracies, shape (trials, folds, epochs, 2): on the fold and on the test texts."""
    states, labels, test_states, test_labels = task(name, seed)
    rng = np.random.default_rng(seed)
    folds = list(StratifiedKFold(N_FOLDS, shuffle=True, random_state=0).split(states, labels))
    trials = []
    for _ in range(N_TRIALS):
        rates = [10 ** rng.uniform(*span) for span in ((-4, -1.5), (-4, -1), (-3, -1))]
        judged = [[(states[own], labels[own]), (test_states, test_labels)] for _, own in folds]
        trials.append(
            [
                train(states[rows], labels[rows], own, rates)
                for (rows, _), own in zip(folds, judged, strict=True)
            ]
        )
    return np.array(trials)


def replay(pruner: str | None, scores: NDArray[np.float64], n_ahead: int) -> tuple[int, int]:
    """Return how many epochs of a fold a search trains, and the trial that it chooses."""
    made = PRUNERS[pruner]() if pruner else optuna.pruners.NopPruner()
    study = optuna.create_study(direction="maximize", pruner=made)
    epochs, left = 0, []
    for number, of_folds in enumerate(scores):
        trial = study.ask()
        for epoch in range(N_EPOCHS):
            epochs += n_ahead
            if n_ahead == N_FOLDS and epoch == N_EPOCHS - 1:
                continue  # nothing is left to save
            trial.report(float(of_folds[:n_ahead, epoch].mean()), epoch + 1)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            epochs += (N_FOLDS - n_ahead) * N_EPOCHS
            study.tell(trial, float(of_folds[:, -1].mean()))
            left.append(number)
    return epochs, max(left, key=lambda number: scores[number, :, -1].mean())


def main() -> None:
    """Train all trials, replay the pruners and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["r8", "20ng"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--orders", type=int, default=5)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = [curves(name, seed) for name in args.sets for seed in range(args.draws)]
    rng = np.random.default_rng(0)
    orders = [rng.permutation(N_TRIALS) for _ in range(args.orders)]
    whole = N_TRIALS * N_FOLDS * N_EPOCHS
    rows = []
    for pruner in (None, *PRUNERS):
        for n_ahead in (1, 2, 3, N_FOLDS) if pruner else (N_FOLDS,):
            spent, chosen, spread = [], [], []
            for found in drawn:
                tried = [
                    (order, *replay(pruner, found[order, ..., 0], n_ahead)) for order in orders
                ]
                spent += [epochs for _, epochs, _ in tried]
                judged = [100 * found[order[best], :, -1, 1].mean() for order, _, best in tried]
                chosen.append(np.mean(judged))
                spread.append(np.std(judged))
            faster = f"{whole / np.mean(spent):.2f}"
            rows.append(
                [pruner, n_ahead, faster, f"{np.mean(chosen):.2f}", f"{np.mean(spread):.2f}"]
            )
    head = ["Pruner", "folds ahead", "fewer epochs by", "chosen, on the test texts, %"]
    print_table([*head, "deviation over the orders"], rows)


if __name__ == "__main__":
    main()
