"""The training loop: epochs of optimizer steps, held-out rows scored after each, raw scores."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skgpt.data.batching import Rows
from skgpt.data.tokenization import Tokens
from skgpt.network.features import TextFeatures
from skgpt.network.microbatches import MicroBatcher, explain_no_memory
from skgpt.network.network import TextNetwork
from skgpt.training.callbacks import EpochRecord, TrainingCallback
from skgpt.training.checkpoint import Checkpoint
from skgpt.training.config import TrainingConfig
from skgpt.training.early_stopping import Validation
from skgpt.training.linear_probe import solve_head
from skgpt.training.loss import Loss
from skgpt.training.optimizer import Moments
from skgpt.training.run import FitResult, TrainingRows, TrainingRun, diverged


@explain_no_memory()
def train(
    network: TextNetwork,
    rows: TrainingRows,
    *,
    loss: Loss,
    config: TrainingConfig,
    validation: Validation | None = None,
    moments: Moments | None = None,
    callbacks: Sequence[TrainingCallback] = (),
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train a network in place; held-out rows are only ever scored.

    It goes on from `moments` of an earlier run and from the state that `checkpoint` found, and
    writes states there after epochs, every few minutes, and before SIGTERM ends the process.

    Raises DivergedError if several steps in a row, or all, are skipped since their loss or
    gradient is not finite, or a weight does not stay so; StorageError if a checkpoint can't be
    written; NoMemoryError if the device can't hold one text at a time, or what learns;
    KeyboardInterrupt before the first step. Later interrupts are part of the result, and so are an
    error of a scorer or callback, and a divergence where the weights of a best epoch are kept.
    """

    def on_progress(done: int, total: int) -> None:
        for callback in callbacks:
            callback.on_progress(done, total)

    try:
        features = TextFeatures(
            network,
            rows.tokens,
            token_budget=config.token_budget,
            memory_budget=config.memory_budget,
            disk_budget=config.disk_budget,
            progress=on_progress,
        )
        validation = validation or Validation()
        with TrainingRun(features, rows, loss, config, validation, moments, checkpoint) as run:
            run.start()
            for callback in callbacks:
                callback.on_train_begin(config, run.n_steps, run.history)
            while not run.is_over:
                # One pass over the training rows.
                for callback in callbacks:
                    with run.user_code():
                        callback.on_epoch_begin(run.epoch + 1)
                for batch in run.batches():
                    (solve_head if config.solves_head else train_step)(run, batch)
                    done = run.end_step(batch)
                    for callback in callbacks:
                        callback.on_step(done)
                    if run.out_of_time:
                        break
                    run.save_if_due()
                record = run.epoch_record()
                # Score the held-out rows, stop or keep the best weights, tell the callbacks.
                stop = len(rows.split.held_out) > 0 and evaluate(run, record)
                run.history.append(record)  # only once it is complete, should Ctrl-C come
                with run.user_code():
                    stops = [callback.on_epoch(record) for callback in callbacks]
                run.end_epoch(stop=stop or any(stops))
                if not run.is_over:
                    run.save()
            run.early_stopping.restore_best()
            run.check_learned()
        return run.result()
    finally:
        for callback in callbacks:
            callback.on_train_end()


def train_step(run: TrainingRun, rows: Rows) -> None:
    """Make one optimizer step: the gradient of the batch's weighted mean loss, then AdamW.

    The loss is the weighted sum over the rows divided by the sum of their weights, however the
    batch is cut into micro-batches. A batch without weight counts as a step and changes nothing.
    """
    network, optimizer = run.network, run.optimizer
    batch_weight = float(run.row_weight[rows].sum())
    if batch_weight == 0:
        optimizer.skip_step()
        return
    rows = rows[run.row_weight[rows] > 0]  # the others would add nothing to the sum

    def gradients(part: Rows) -> tuple[list[Tensor | None], Tensor]:
        with network.dropout.seeded(run.config.seed, run.step_of_all_passes, int(part[0])):
            logits_BK = network.score(run.features.pooled(part))
        loss = run.share_of_loss(logits_BK, part, batch_weight)
        return optimizer.gradients(loss), loss.detach()

    optimizer.zero_grad()
    losses: list[Tensor] = []
    for _, (of_part, loss) in run.batcher.map(gradients, rows, run.lengths):
        optimizer.add(of_part)
        losses.append(loss)
        del of_part  # or they would be there beside the next ones
    skipped = optimizer.step(losses)
    run.running_loss.add(losses, batch_weight, skipped)


@torch.no_grad()
def evaluate(run: TrainingRun, record: EpochRecord) -> bool:
    """Score the held-out rows as they stand, into the record; say whether to stop for it."""
    rows = run.rows.split.held_out
    weight = float(run.row_weight[rows].sum())
    logits_NK = np.empty((len(rows), run.network.spec.n_outputs), dtype=np.float32)
    loss = 0.0
    batcher = MicroBatcher(run.network, run.config.token_budget)

    def scores(part: Rows) -> tuple[Tensor, float]:
        logits_BK = run.network.score(run.features.pooled(rows[part]))
        return logits_BK.cpu(), float(run.share_of_loss(logits_BK, rows[part], weight))

    for part, (logits_BK, part_loss) in batcher.map(
        scores, np.arange(len(rows)), run.lengths[rows]
    ):
        logits_NK[part] = logits_BK.numpy()
        loss += part_loss
        run.save_if_due()
    if not (np.isfinite(loss) and np.isfinite(logits_NK).all()):
        raise diverged(
            run.config,
            "The raw scores must stay finite. Those of the held-out rows didn't in epoch "
            f"{record['epoch']}",
        )
    scorer = run.validation.scorer
    with run.user_code():
        score = -loss if scorer is None else float(scorer(logits_NK))
    record["validation_loss"], record["validation_score"] = loss, score
    counts = record["epoch"] > run.config.head_first_epochs
    return run.early_stopping.update(score, counts=counts)


@explain_no_memory()
def raw_scores(
    network: TextNetwork,
    tokens: Tokens,
    token_budget: int,
    memory_budget: int,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> NDArray[np.float32]:
    """Return the raw scores of every text, shape (N, K); `progress` hears how far which work is.

    A text that is there several times runs once, and frozen layers don't run again for texts whose
    states are kept, unless all of them together would take more than `memory_budget` bytes.
    """
    texts, first = tokens.distinct()
    rows = np.array(sorted(first.values()), dtype=np.int64)
    logits_NK = np.empty((len(tokens), network.spec.n_outputs), dtype=np.float32)
    with torch.no_grad():
        features = TextFeatures(
            network,
            tokens,
            token_budget=token_budget,
            memory_budget=memory_budget,
            progress=partial(progress, "predict, frozen layers"),
        )
        made = MicroBatcher(network, token_budget).map(
            lambda part: network.score(features.pooled(part)).cpu(),
            rows,
            features.lengths,
            partial(progress, "predict"),
        )
        for part, logits_BK in made:
            logits_NK[part] = logits_BK.numpy()
    return logits_NK[[first[text] for text in texts]]
