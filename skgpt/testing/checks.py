"""`check_text_estimator`: scikit-learn's checks and ours, with a count of what really ran.

scikit-learn reports success for an estimator that it ran no checks on, which is what it does when
the tags say "only 1-D texts". So success here means that the checks ran, too.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

from skgpt.testing.text_checks import TEXT_CHECKS

# A classifier gets about 63, a transformer about 45; one whose tags refuse 2-D input gets 1.
_MIN_SKLEARN_CHECKS = 30


# What came of a check, as scikit-learn says it: its "check_name", a "status" ("passed", "failed",
# "xfail" or "skipped") and an "exception".
Result = Mapping[str, Any]


@dataclass(frozen=True)
class TextEstimatorReport:
    """What `check_text_estimator` ran, when nothing failed that was not expected to.

    Parameters
    ----------
    estimator : str
        The class of the estimator.
    n_passed : int
        Checks that passed, scikit-learn's and ours together.
    n_sklearn_checks : int
        scikit-learn's checks that really ran: passed, or failed as expected.
    n_text_checks : int
        Our checks that really ran.
    expected_failures : dict of str to str
        The checks that failed as expected, and the reasons that were given.
    unexpected_passes : tuple of str
        The checks that were expected to fail and passed: their expectation can go.
    skipped : dict of str to str
        The checks that did not apply, and why.
    """

    estimator: str
    n_passed: int
    n_sklearn_checks: int
    n_text_checks: int
    expected_failures: dict[str, str]
    unexpected_passes: tuple[str, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"{self.estimator}: {self.n_passed} checks passed; ran {self.n_sklearn_checks} of "
            f"scikit-learn's and {self.n_text_checks} on texts."
        ]
        lines += _section("Failed as expected", self.expected_failures.items())
        lines += _section("Expected to fail, but passed", self.unexpected_passes)
        lines += _section("Skipped", self.skipped.items())
        return "\n".join(lines)


def check_text_estimator(
    estimator: Any, *, expected_failed_checks: Mapping[str, str] | None = None
) -> TextEstimatorReport:
    """Check that a text estimator keeps scikit-learn's conventions, and some more about texts.

    scikit-learn's own checks run on 2-D arrays of numbers, so the estimator must take those as
    texts and say so in its tags: ``input_tags.string`` and ``input_tags.two_d_array``, both True.
    Set ``SCIPY_ARRAY_API=1`` in the environment before scipy is imported, or scikit-learn skips
    one check. Warnings are not shown meanwhile.

    Parameters
    ----------
    estimator : estimator instance
        Any text estimator: skgpt's or your own. It is cloned, never fitted itself, and its clones
        get ``random_state=0`` if they have that parameter. There are about 20 fits on 24 short
        texts besides scikit-learn's, so pass one with a tiny model.
    expected_failed_checks : mapping of str to str, default=None
        Names of checks, scikit-learn's or ours, that are expected to fail, and why.

    Returns
    -------
    report : TextEstimatorReport
        What ran. ``print(report)`` is readable.

    Raises
    ------
    AssertionError
        If a check fails that was not expected to, or the estimator's tags keep scikit-learn from
        running its checks. The message names every failed check with its error.

    Examples
    --------
    >>> from skgpt import GPTTextClassifier
    >>> from skgpt.testing import check_text_estimator, tiny_gpt
    >>> model = tiny_gpt("tiny")  # doctest: +SKIP
    >>> classifier = GPTTextClassifier(model, max_epochs=1, precision="fp32")  # doctest: +SKIP
    >>> expected = {"check_sample_weight_equivalence_on_dense_data": "batches differ"}
    >>> print(check_text_estimator(classifier, expected_failed_checks=expected))  # doctest: +SKIP
    """
    expected = dict(expected_failed_checks or {})
    with warnings.catch_warnings():
        # The checks are about what an estimator does; those about warnings record them themselves.
        warnings.simplefilter("ignore")
        sklearn_results: list[Result] = check_estimator(
            estimator, expected_failed_checks=expected, on_skip=None, on_fail=None
        )
        text_results = [_run_text_check(name, estimator, expected) for name in TEXT_CHECKS]
    results = sklearn_results + text_results
    name = type(estimator).__name__

    def of_status(status: str) -> list[tuple[str, Any]]:
        return [(r["check_name"], r["exception"]) for r in results if r["status"] == status]

    failed, passed = of_status("failed"), [check for check, _ in of_status("passed")]
    n_sklearn_checks = _n_run(sklearn_results)
    if n_sklearn_checks < _MIN_SKLEARN_CHECKS:
        failed.insert(0, ("check_sklearn_checks_ran", _too_few_checks(estimator, n_sklearn_checks)))
    if failed:
        message = _failure_message(name, failed, len(results))
        raise AssertionError(message) from failed[0][1]
    return TextEstimatorReport(
        estimator=name,
        n_passed=len(passed),
        n_sklearn_checks=n_sklearn_checks,
        n_text_checks=_n_run(text_results),
        expected_failures={check: expected[check] for check, _ in of_status("xfail")},
        unexpected_passes=tuple(sorted(expected.keys() & passed)),
        skipped={check: str(error) for check, error in of_status("skipped")},
    )


def _run_text_check(name: str, estimator: Any, expected: Mapping[str, str]) -> Result:
    status: str = "passed"
    exception: Exception | None = None
    try:
        TEXT_CHECKS[name](estimator)
    except SkipTest as skip:
        status, exception = "skipped", skip
    except Exception as error:  # whatever a stranger's estimator raises is a failed check
        status, exception = "xfail" if name in expected else "failed", error
    return {"check_name": name, "status": status, "exception": exception}


def _n_run(results: Iterable[Result]) -> int:
    return sum(result["status"] in ("passed", "xfail") for result in results)


def _too_few_checks(estimator: Any, n_run: int) -> AssertionError:
    tags = get_tags(estimator).input_tags
    return AssertionError(
        f"at least {_MIN_SKLEARN_CHECKS} of scikit-learn's checks must run. It ran {n_run}, "
        f"with input_tags.string={tags.string} and input_tags.two_d_array={tags.two_d_array}. "
        "Set both to True in __sklearn_tags__ and let the estimator take the numbers of a 2-D "
        "array as texts: scikit-learn passes over an estimator that refuses 2-D input."
    )


def _failure_message(name: str, failed: list[tuple[str, Any]], n_checks: int) -> str:
    lines = []
    for check, error in failed:
        message = str(error).strip().replace("\n", "\n    ")
        lines.append(f"{check}: {type(error).__name__}: {message}")
    return "\n".join(_section(f"{name} failed {len(failed)} of {n_checks} checks", lines))


def _section(title: str, lines: Iterable[str | tuple[str, str]]) -> list[str]:
    items = [f"  - {line if isinstance(line, str) else ': '.join(line)}" for line in lines]
    return [f"{title}:", *items] if items else []
