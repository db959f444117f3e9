"""The only importer of scikit-learn's private names; if one moves, it is mended here."""

from typing import Any

from sklearn.base import _fit_context as fit_context
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import _fit_and_score as fit_and_score
from sklearn.utils import _safe_indexing as take_rows
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import _check_method_params as check_method_params
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

try:
    from sklearn.callback import CallbackSupportMixin  # from 1.9 on; its fit_context tears down

    HAS_CALLBACKS = True
except ImportError:
    HAS_CALLBACKS = False

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Has no `set_callbacks`, so that asking for one says that there is none."""


# Where scikit-learn's HTML representation of an estimator links to.
DOC_LINK = "https://skgpt.readthedocs.io/en/stable/generated/"


def have_it_raise(scorer: Any) -> Any:
    """Have a scorer of several metrics raise what one of them does, as a single one's would."""
    if hasattr(scorer, "_raise_exc"):
        scorer._raise_exc = True
    return scorer
