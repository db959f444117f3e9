"""The arm K: skorch's NeuralNetClassifier behind its Hugging Face tokenizer, in a Pipeline."""

from typing import Any

import torch
from _arms import Setting
from _trainer import load_classifier, load_tokenizer
from sklearn.pipeline import Pipeline
from skorch import NeuralNetClassifier
from skorch.hf import HuggingfacePretrainedTokenizer


def skorch_pipeline(n_labels: int, setting: Setting) -> Pipeline:
    """Return the unfitted Pipeline, as skorch does it: fp32, padded, a constant learning rate.

    Labels must be the numbers from 0 on.
    """

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load_classifier(n_labels, setting)
            self.model.config.pad_token_id = load_tokenizer().pad_token_id

        def forward(self, **inputs: Any) -> Any:
            return self.model(**inputs).logits

    class Net(NeuralNetClassifier):
        def fit(self, X: Any, y: Any) -> Any:
            torch.manual_seed(setting.seed)
            return super().fit(X, y)

    net = Net(
        Module,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=setting.learning_rate,
        batch_size=setting.batch,
        max_epochs=setting.epochs,
        train_split=None,
        iterator_train__shuffle=True,
        device=setting.device,
        verbose=0,
    )
    # Of a tokenizer of our own making, as some models' files know no padding.
    tokenizer = HuggingfacePretrainedTokenizer(load_tokenizer(), max_length=setting.max_length)
    return Pipeline([("tokenizer", tokenizer), ("net", net)])
