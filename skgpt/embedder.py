"""GPTTextEmbedder: a pretrained GPT's hidden states as features, for any other estimator."""

from collections.abc import Sequence
from dataclasses import fields, replace
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler

from skgpt._base import SHARED_CONSTRAINTS, BaseGPTText, BaseTextModel
from skgpt._sklearn import Interval, StrOptions, fit_context
from skgpt.caching import predicting
from skgpt.data.inputs import check_weight, find_columns
from skgpt.data.template import parse_template
from skgpt.data.tokenization import LongText
from skgpt.device import own_settings, resolve_device, resolve_precision
from skgpt.exceptions import ContinuationError, InvalidArgumentError, suggests_names
from skgpt.fitted_model import FittedEmbedder, TextModel, column_attributes, match_columns
from skgpt.fitting import check_max_length, warn_of_cut_texts
from skgpt.network.microbatches import explain_no_memory
from skgpt.network.network import POOLINGS, build_network, resolve_layers
from skgpt.pretrained.loading import load_pretrained

_SHARED = ("model", "revision", "template", "max_length", "long_text", "device", "precision")


class GPTTextEmbedder(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseTextModel[FittedEmbedder]
):
    r"""Turn texts into a pretrained GPT's hidden states, one row of features per text.

    Nothing is trained: each text runs through the model's first layers once, and the states of its
    tokens become one vector. What comes out is for another estimator: a linear model, neighbours,
    clusters, or gradient boosting with numbers and categories beside the text.

    Parameters
    ----------
    model : str, default="smollm2-135m"
        An alias, a Hugging Face hub id, a local transformers folder or a .gguf file.
    revision : str or None, default=None
        Hub revision: a branch, tag or commit.
    layer : int, list of int or "auto", default="auto"
        Which of the model's layers, counted from 1, the states are taken behind; the model's final
        norm is applied to them. Those of several layers stand side by side, and take a run each.
        "auto" is the depth that `GPTTextClassifier` keeps by default: four fifths of a decoder's
        layers, all of an encoder's.
    pooling : {"mean", "last"}, default="mean"
        How a text's hidden states become one vector: their mean, or the last token's.
    standardize : bool, default=True
        Whether `fit` learns the mean and the deviation of each feature, and `transform` subtracts
        the one and divides by the other. A few features are far larger than the others, so most
        estimators need that. False gives the states as they are, and `fit` runs nothing.
    template : str or None, default=None
        How the columns of a row become one text, as in ``"{title}\n{body}"``: names of a
        DataFrame's columns, positions of an array's, ``{text}`` for a single column. None joins
        the columns with a blank line.
    max_length : int, default=256
        Tokens per text, template included; `long_text` says how a longer text is read.
    long_text : {"cut", "windows"}, default="cut"
        "cut" cuts the longest field of a text that is too long at its end. "windows" reads the
        whole text in windows of `max_length` tokens that overlap by half, and averages their pooled
        states.
    device : str, default="auto"
        "auto" (a CUDA device if there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    precision : {"auto", "bf16", "fp16", "fp32"}, default="auto"
        Precision of the model's arithmetic. "auto": bf16 where the hardware is fast at it, else
        fp32. Features are float32 whichever it is.
    store_base : "auto" or bool, default="auto"
        Whether a pickle or saved folder holds the base model and its tokenizer. "auto": only if
        they can't be fetched again by name, like those of a local folder. False: never; opening
        then needs the same model in the same place. You may set it on a fitted estimator.
    verbose : int, default=0
        0 is silent; 1 and more show a progress bar of what takes more than a second, on stderr.

    Attributes
    ----------
    layer_ : int or list of int
        The layer or layers that were used.
    mean_ : ndarray of shape (n_features,)
        The mean of each feature over the rows of the fit; only with `standardize`.
    scale_ : ndarray of shape (n_features,)
        Its deviation, or 1 where that is zero; only with `standardize`.
    pooling_ : {"mean", "last"}
        The pooling that was used.
    model_id_ : str
        The model that was used.
    device_ : str
        Where the model is.
    n_features_in_ : int
        Number of columns; only for 2-D X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns; only for a DataFrame with string column names.

    See Also
    --------
    GPTTextClassifier : Trains the last layers and a head on labels. With ``trainable_layers=0`` it
        is a linear model on these very states.

    Notes
    -----
    The process keeps the states of the texts of a fit, so folds, candidates and a refit cost the
    model's layers once per text. A text that is there several times in X runs once. Besides the
    result, memory holds a few thousand texts at a time, however many there are.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skgpt import GPTTextEmbedder
    >>> clf = make_pipeline(GPTTextEmbedder(), LogisticRegression(C=0.01))
    >>> clf.fit(texts, labels).predict(["oil prices rose sharply"])  # doctest: +SKIP
    array(['crude'], dtype='<U8')
    """

    _kind = FittedEmbedder
    _parameter_constraints: dict[str, list[Any]] = {
        **{name: SHARED_CONSTRAINTS[name] for name in (*_SHARED, "store_base", "verbose")},
        "layer": [Interval(Integral, 1, None, closed="left"), list, tuple, StrOptions({"auto"})],
        "pooling": [StrOptions({*POOLINGS})],
        "standardize": ["boolean"],
    }

    @suggests_names
    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        revision: str | None = None,
        layer: int | Sequence[int] | Literal["auto"] = "auto",
        pooling: Literal["mean", "last"] = "mean",
        standardize: bool = True,
        template: str | None = None,
        max_length: int = 256,
        long_text: LongText = "cut",
        device: str = "auto",
        precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        store_base: Literal["auto"] | bool = "auto",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.layer = layer
        self.pooling = pooling
        self.standardize = standardize
        self.template = template
        self.max_length = max_length
        self.long_text = long_text
        self.device = device
        self.precision = precision
        self.store_base = store_base
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    @own_settings()
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn the columns of X and, with `standardize`, the features' means and deviations.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts: a list, array or Series of str. The columns of 2-D input are laid out by
            `template`, numbers formatted as text.
        y : object, default=None
            Not looked at.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows in the means and deviations, >= 0. None is one for every row.

        Returns
        -------
        self : GPTTextEmbedder
            The fitted estimator.

        Raises
        ------
        ValueError
            If X, a weight or a parameter is not as described here; before the model runs. Or if
            this estimator is from `from_classifier`, whose weights no fit can learn again.
        OSError
            If the model can't be found, fetched or read.
        """
        self._fit(X, sample_weight, wants_states=False)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @own_settings()
    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the features of X; each text runs once for both.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, as in `fit`.
        y : object, default=None
            Not looked at.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows, as in `fit`.

        Returns
        -------
        features : ndarray of shape (n, n_features), float32
            What `transform` returns; a DataFrame if `set_output` asks for one.

        Raises
        ------
        ValueError
            As in `fit`.
        OSError
            If the model can't be found, fetched or read.
        """
        return self._fit(X, sample_weight, wants_states=True)

    @own_settings()
    @predicting()
    def transform(self, X: Any) -> Any:
        """Return the features of texts.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, n_columns)
            Texts, with the columns of the fit.

        Returns
        -------
        features : ndarray of shape (n, n_features), float32
            Their hidden states, pooled and, with `standardize`, standardised; those of several
            layers side by side. A DataFrame if `set_output` asks for one.

        Raises
        ------
        ValueError
            If X is not as described here.
        """
        model = self._fitted()
        cells, place_of = _distinct(model.read_texts(X)[1])
        states_DF = np.empty((len(cells[0]), model.n_features), dtype=np.float32)
        for batch in model.pooled(cells, self.verbose):
            states_DF[batch.rows] = batch.states
        return _features(model, states_DF, place_of)

    @classmethod
    @own_settings()
    def from_classifier(cls, clf: Any) -> Self:
        """Return a fitted embedder with the layers that a classifier has fine-tuned.

        It gives the very states that the classifier's head is given, not standardised, and shares
        the classifier's weights in memory. To use it in a Pipeline, wrap it in scikit-learn's
        `FrozenEstimator`, as a Pipeline fits its steps anew and `fit` raises here. `clone` gives an
        unfitted one on the pretrained model.

        Parameters
        ----------
        clf : GPTTextClassifier or GPTTextRegressor
            Fitted.

        Returns
        -------
        embedder : GPTTextEmbedder
            Fitted, with ``standardize=False``.

        Raises
        ------
        TypeError
            If `clf` is no estimator of skgpt's that trains.
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        """
        if not isinstance(clf, BaseGPTText):
            raise InvalidArgumentError(
                "`clf` must be a fitted GPTTextClassifier or GPTTextRegressor. Got "
                f"{type(clf).__name__}: of a Pipeline or search pass what is skgpt's, like "
                "pipeline[-1] or search.best_estimator_."
            )
        model = clf._fitted()
        spec, pretrained = model.network.spec, model.network.pretrained
        record = {each.name: getattr(model, each.name) for each in fields(TextModel)}
        params = {name: record[name] for name in _SHARED if name in record}
        params |= {"model": pretrained.model, "revision": pretrained.revision}
        params |= {name: getattr(clf, name) for name in ("template", "store_base", "verbose")}
        params |= {"layer": spec.n_layers, "pooling": spec.pooling, "standardize": False}
        embedder = cls(**params)
        record["fitted_by"] = cls.__name__
        embedder._set_fitted(FittedEmbedder(**record, layers=[spec.n_layers]))
        return embedder

    def _fit(self, X: Any, sample_weight: Any, *, wants_states: bool) -> Any:
        """Fit; return the features of X if they are wanted."""
        if hasattr(self, "_model") and self._model.network.learnable:
            raise ContinuationError(
                "An embedder of from_classifier has weights that fit can't learn: it would start "
                "anew from the pretrained model. In a Pipeline wrap it in "
                "sklearn.frozen.FrozenEstimator; to start anew, fit a clone."
            )
        name = type(self).__name__
        texts = find_columns(X, estimator=name)
        columns = column_attributes(texts, name)
        template = parse_template(self.template, len(texts.columns), texts.names)
        cells = texts.read(match_columns(columns, template, texts, name=name), to_fit=name)
        weight = check_weight(sample_weight, len(texts))
        model = self._unfitted_model(fitted_by=name, columns=columns, template=template)

        if not (self.standardize or wants_states):
            self._set_fitted(model)
            return None

        # Run each distinct text; take its states in with the weight of all its rows.
        cells, place_of = _distinct(cells)
        weight_D = np.bincount(place_of, weight)
        n_kept = len(weight_D) if wants_states else 0
        states_DF = np.empty((n_kept, model.n_features), dtype=np.float32)
        scaler, n_cut = StandardScaler(), 0
        for batch in model.pooled(cells, self.verbose):
            n_cut += batch.n_cut
            if wants_states:
                states_DF[batch.rows] = batch.states
            batch_weight = weight_D[batch.rows]
            weighs = batch_weight > 0
            if self.standardize and weighs.any():
                counted = batch.states[weighs].astype(np.float64)
                scaler.partial_fit(counted, sample_weight=batch_weight[weighs])
        warn_of_cut_texts(name, model.max_length, n_cut, len(weight_D))

        if self.standardize:
            model = replace(model, mean=scaler.mean_, scale=scaler.scale_)
        self._set_fitted(model)
        return _features(model, states_DF, place_of) if wants_states else None

    @explain_no_memory()
    def _unfitted_model(self, **record: Any) -> FittedEmbedder:
        """Return a record without statistics; the parameters are checked against the model."""
        device = resolve_device(self.device)
        dtype = resolve_precision(self.precision, device)
        pretrained = load_pretrained(self.model, self.revision)
        layers = resolve_layers(self.layer, pretrained)
        check_max_length(self.max_length, pretrained)
        network = build_network(
            pretrained,
            n_layers=max(layers),
            trainable_layers=0,
            pooling=self.pooling,
            n_outputs=1,  # of a head that nothing asks
            dtype=dtype,
            device=device,
        )
        return FittedEmbedder(
            **record,
            network=network,
            layers=layers,
            max_length=int(self.max_length),
            long_text=self.long_text,
            device=self.device,
            precision=self.precision,
        )

    @property
    def _n_features_out(self) -> int:
        return self._model.n_features

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # float32, whatever X is
        return tags


def _distinct(cells: list[list[str]]) -> tuple[list[list[str]], NDArray[np.int64]]:
    """Return the columns of the distinct rows, and which of those each row is."""
    number: dict[tuple[str, ...], int] = {}
    rows = zip(*cells, strict=True)
    place_of = np.array([number.setdefault(row, len(number)) for row in rows], dtype=np.int64)
    return [list(column) for column in zip(*number, strict=True)], place_of


def _features(
    model: FittedEmbedder, states_DF: NDArray[np.float32], place_of: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the features of all rows; `states_DF`, of the distinct ones, is written over."""
    model.standardise(states_DF)
    return states_DF if len(states_DF) == len(place_of) else states_DF[place_of]
