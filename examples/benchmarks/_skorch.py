"""The arm K: skorch's NeuralNetClassifier behind its Hugging Face tokenizer, in a Pipeline."""

from typing import Any, NamedTuple

import torch
from _arms import Setting
from _trainer import load_classifier, load_tokenizer
from sklearn.pipeline import Pipeline
from skorch import NeuralNetClassifier
from skorch.hf import HuggingfacePretrainedTokenizer


class Skorch(NamedTuple):
    """A Pipeline of ``tokenizer`` and ``net``, and the classes of its steps."""

    pipeline: Pipeline
    tokenizer: type
    net: type


def skorch_pipeline(n_labels: int, setting: Setting) -> Skorch:
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

    class Tokenizer(HuggingfacePretrainedTokenizer):
        pass

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
    # A tokenizer of our own making, for some models' files know no padding.
    tokenizer = Tokenizer(load_tokenizer(), max_length=setting.max_length)
    return Skorch(Pipeline([("tokenizer", tokenizer), ("net", net)]), Tokenizer, Net)
