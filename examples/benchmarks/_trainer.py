"""The arms H0 and H1: Hugging Face's Trainer by default, and as a careful user would set it.

H1 has `bf16=True` (fp32 weights, bf16 arithmetic) and batches of texts of like length; it predicts
in batches of 64, sorted by length. Both load only the layers that are asked for.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from _arms import MODEL, WARM_UP, Clock, Setting
from numpy.typing import NDArray
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from skgpt.pretrained.default_models import alias_folder

Row = dict[str, Any]
PREDICT_BATCH = 64

# A head that is new and layers that are left out are what is wanted here.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load_tokenizer() -> Any:
    """Return the model's own tokenizer, able to pad."""
    tokenizer = AutoTokenizer.from_pretrained(str(alias_folder(MODEL)))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def tokenised(
    texts: Sequence[str] | NDArray[Any], tokenizer: Any, max_length: int
) -> list[list[int]]:
    """Return the token ids of each text, cut."""
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_length)[
        "input_ids"
    ]
    return ids


def load_classifier(n_labels: int, setting: Setting) -> Any:
    """Return the pretrained model with a new head, its first layers frozen as the setting says."""
    torch.manual_seed(setting.seed)  # the head is drawn
    depth = {} if setting.n_layers is None else {"num_hidden_layers": setting.n_layers}
    model = AutoModelForSequenceClassification.from_pretrained(
        str(alias_folder(MODEL)), num_labels=n_labels, dtype=torch.float32, **depth
    )
    if setting.trainable_layers != "all":
        blocks = model.model.layers
        frozen = blocks[: len(blocks) - setting.trainable_layers]
        for module in (model.model.embed_tokens, *frozen):
            module.requires_grad_(False)
    return model


def make_trainer(
    model: Any,
    rows: list[Row],
    tokenizer: Any,
    setting: Setting,
    *,
    tuned: bool,
    scratch: str,
    kind: type[Trainer] = Trainer,
    **own: Any,
) -> Trainer:
    """Return a Trainer over rows of token ids and labels: H1 if it is tuned, else H0."""
    model.config.pad_token_id = tokenizer.pad_token_id
    if tuned:
        own |= {"bf16": True, "train_sampling_strategy": "group_by_length"}
    arguments = TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=setting.batch,
        per_device_eval_batch_size=PREDICT_BATCH,
        learning_rate=setting.learning_rate,
        num_train_epochs=setting.epochs,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=setting.device == "cpu",
        seed=setting.seed,
        **own,
    )
    return kind(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
    )


class InOrder(Trainer):
    """Predicts rows in the order they come in; the Trainer itself would group them at random."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        return SequentialSampler(eval_dataset)


class WholeFit:
    """A whole fit of H0 or H1 on token ids, and its predictions.

    Parameters
    ----------
    setting : Setting
    tuned : bool
        H1 rather than H0.
    tokenizer : transformers tokenizer
    """

    def __init__(self, setting: Setting, tuned: bool, tokenizer: Any) -> None:
        self.setting = setting
        self.tuned = tuned
        self.tokenizer = tokenizer
        self.model: Any = None

    def load(self, topics: NDArray[Any]) -> None:
        """Load the model anew, with an output for each topic that occurs."""
        self.classes, self._codes = np.unique(topics, return_inverse=True)
        self.model = load_classifier(len(self.classes), self.setting)

    def train(self, ids: list[list[int]]) -> None:
        """Train on these texts, whose topics `load` was given."""
        rows = [
            {"input_ids": row, "labels": int(code)}
            for row, code in zip(ids, self._codes, strict=True)
        ]
        with tempfile.TemporaryDirectory() as scratch:
            self.trainer = make_trainer(
                self.model,
                rows,
                self.tokenizer,
                self.setting,
                tuned=self.tuned,
                scratch=scratch,
                kind=InOrder,
            )
            self.trainer.train()

    def predict(self, ids: list[list[int]]) -> NDArray[Any]:
        """Return the predicted topic of each text."""
        order = np.argsort([-len(row) for row in ids], kind="stable")
        logits = self.trainer.predict([{"input_ids": ids[i]} for i in order]).predictions
        labels = np.empty(len(ids), dtype=self.classes.dtype)
        labels[order] = self.classes[np.asarray(logits).argmax(axis=1)]
        return labels


def time_trainer(
    texts: NDArray[Any], topics: NDArray[Any], n_steps: int, tuned: bool, setting: Setting
) -> Clock:
    """Time H0 or H1: steps of `Trainer.train`, from all over an epoch."""
    names, labels = np.unique(topics, return_inverse=True)
    tokenizer = load_tokenizer()
    ids = tokenised(texts, tokenizer, setting.max_length)
    rows = [
        {"input_ids": row, "labels": int(label)} for row, label in zip(ids, labels, strict=True)
    ]
    clock = Clock(n_steps, setting.device)
    batch = setting.batch
    begun: list[tuple[Any, int]] = []  # the step under way

    class Timed(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> list[int]:
            # Batches from all over the epoch: grouped ones come with the longest first.
            order = list(super()._get_train_sampler(*args, **kwargs))
            batches = [order[i : i + batch] for i in range(0, len(order), batch)]
            chosen = np.linspace(0, len(batches) - 1, n_steps).round().astype(int)
            return [row for i in np.roll(chosen, WARM_UP) for row in batches[i]]

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            # The optimiser's step follows this, so a step ends where the next one begins.
            if begun:
                clock.tick(*begun.pop())
            mask = inputs["attention_mask"]
            begun.append((mask.sum(), mask.numel()))
            return super().training_step(model, inputs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(
            load_classifier(len(names), setting),
            rows,
            tokenizer,
            setting,
            tuned=tuned,
            scratch=scratch,
            kind=Timed,
            max_steps=n_steps,
        )
        trainer.train()
    clock.tick(*begun.pop())
    return clock
