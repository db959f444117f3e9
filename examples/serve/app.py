"""The web application: texts, or rows of several columns, in; labels and probabilities out."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from batching import Batcher, BusyError, PredictionError, StoppingError
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from limits import BodyLimit
from pydantic import BaseModel, ConfigDict
from settings import Settings

Label = str | int | float | bool

_NAME_LENGTH = 40  # letters that an answer shows of a name in the body
_NOT_FINITE = (math.inf, -math.inf)


class Texts(BaseModel):
    """What `/classify` takes if the classifier was fitted on single texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str]


class Rows(BaseModel):
    """What `/classify` takes if the classifier was fitted on columns with names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rows: list[dict[str, Any]]  # a cell is checked with its column, for a clear answer


class Answer(BaseModel):
    """What `/classify` gives, in the order of the texts or rows.

    A row of `probabilities` is in the order of `classes`. A label is one of `classes`; for a
    multilabel classifier it is a list of them. For one of several outputs, `classes` is a list of
    those of each, and so are a label and a row of `probabilities`.
    """

    classes: list[Label] | list[list[Label]]
    labels: list[Label | list[Label]]
    probabilities: list[list[float]] | list[list[list[float]]]


class Health(BaseModel):
    """What `/health` gives."""

    status: str
    unanswered_texts: int


def create_app(classifier: Any, settings: Settings) -> FastAPI:
    """Return the application; all it knows is in its `state`.

    Parameters
    ----------
    classifier : GPTTextClassifier or Pipeline
        Fitted on texts, or on columns with names (a DataFrame).
    settings : Settings

    Raises
    ------
    ValueError
        If the classifier can classify neither.
    """
    if not hasattr(classifier, "predict_proba"):
        raise ValueError(
            "The server answers with labels and their probabilities. Got an estimator without "
            f"predict_proba: {type(classifier).__name__}."
        )
    columns = [*map(str, getattr(classifier, "feature_names_in_", ()))]
    # The first prediction is slower than others, and shows whether there can be any. A column of
    # numbers takes this text, too.
    first = [dict.fromkeys(columns, "1")] if columns else ["a text"]
    try:
        has_columns = np.ndim(classifier.predict(_as_X(first, columns))) == 2
    except ValueError as error:
        raise ValueError(
            f"The classifier must take texts, or columns whose names it knows. It knows {columns}, "
            f"and {first[0]!r} gave: {error}"
        ) from error

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with app.state.batcher.running():
            yield

    app = FastAPI(title="skgpt", lifespan=lifespan)
    app.state.settings = settings
    app.state.classes = classifier.classes_
    app.state.multioutput = isinstance(classifier.classes_, list)
    app.state.multilabel = has_columns and not app.state.multioutput
    app.state.columns = columns
    app.state.batcher = Batcher(
        lambda items: _rows_of(classifier.predict_proba(_as_X(items, columns))),
        max_texts=settings.batch_texts,
        max_wait=settings.batch_wait_ms / 1000,
        max_unanswered=settings.queue_texts,
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_bytes)
    app.add_exception_handler(RequestValidationError, _refuse)
    classify = classify_rows if columns else classify_texts
    app.add_api_route("/classify", classify, methods=["POST"], response_model=Answer)
    app.add_api_route("/health", health, response_model=Health)
    return app


def _as_X(items: list[Any], columns: list[str]) -> Any:
    """Return texts as they are, and rows as the table that the classifier was fitted on."""
    if not columns:
        return items
    import pandas as pd

    return pd.DataFrame(items, columns=columns)


def _rows_of(probabilities: Any) -> Any:
    """Return the probabilities of each text; of several outputs, an array for each output."""
    several = isinstance(probabilities, list)
    return list(zip(*probabilities, strict=True)) if several else probabilities


async def classify_texts(body: Texts, request: Request) -> Answer:
    """Classify a batch of texts."""
    _check_limits("texts", [[text] for text in body.texts], request.app.state.settings)
    return await _answer(body.texts, request.app.state)


async def classify_rows(body: Rows, request: Request) -> Answer:
    """Classify a batch of rows of several columns."""
    state = request.app.state
    _check_limits("rows", [list(row.values()) for row in body.rows], state.settings)
    for number, row in enumerate(body.rows):
        if row.keys() != set(state.columns):
            found = [name[:_NAME_LENGTH] for name in sorted(row)[: len(state.columns) + 1]]
            raise HTTPException(
                422, f"A row must have the columns {state.columns}. rows[{number}] has {found}."
            )
        for name, cell in row.items():
            if not isinstance(cell, str | int | float) or cell in _NOT_FINITE or cell != cell:
                raise HTTPException(
                    422,
                    f"rows[{number}][{name!r}] must be a text, a finite number, true or false. Got "
                    f"{_kind_of(cell)}.",
                )
    return await _answer(body.rows, state)


async def _answer(items: list[Any], state: Any) -> Answer:
    try:
        rows = await state.batcher.submit(items)
    except StoppingError:
        raise _stopping() from None
    except asyncio.CancelledError:  # it was accepted, and the time for a stop is up
        if not state.batcher.stopping:
            raise
        raise _stopping() from None
    except BusyError:
        raise HTTPException(
            503,
            f"At most {state.settings.queue_texts} texts may be waiting. They are: try again soon.",
            headers={"Retry-After": "1"},
        ) from None
    except PredictionError:
        raise HTTPException(
            500, "The prediction failed, and the server's log says why. The server goes on."
        ) from None
    classes = state.classes
    if state.multioutput:
        each = [c.tolist() for c in classes]
        labels = [[c[p.argmax()] for c, p in zip(each, row, strict=True)] for row in rows]
        found = [[p.tolist() for p in row] for row in rows]
        return Answer(classes=each, labels=labels, probabilities=found)
    probabilities = np.asarray(rows)
    if state.multilabel:
        labels = [classes[row > 0.5].tolist() for row in probabilities]
    else:
        labels = classes[probabilities.argmax(axis=1)].tolist()
    return Answer(classes=classes.tolist(), labels=labels, probabilities=probabilities.tolist())


async def health(request: Request) -> Health:
    """Say whether requests are taken: 200 if so, 503 once a stop has begun."""
    batcher = request.app.state.batcher
    if batcher.stopping:
        raise _stopping()
    return Health(status="ok", unanswered_texts=batcher.unanswered)


def _stopping() -> HTTPException:
    return HTTPException(503, "The server is stopping and takes no more requests: ask another.")


def _check_limits(name: str, rows: list[list[Any]], settings: Settings) -> None:
    """Check how many there are, and how long each is in all of its columns."""
    if not rows:
        raise HTTPException(422, f"`{name}` must hold at least one text. Got an empty list.")
    if len(rows) > settings.max_texts:
        raise HTTPException(
            422,
            f"`{name}` must hold at most {settings.max_texts} texts. Got {len(rows)}: send them in "
            "several requests.",
        )
    for number, row in enumerate(rows):
        n_characters = sum(len(cell) for cell in row if isinstance(cell, str))
        if n_characters > settings.max_characters:
            raise HTTPException(
                422,
                f"A text must have at most {settings.max_characters} characters. {name}[{number}] "
                f"has {n_characters}: cut it.",
            )


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with a body, without handing back its texts."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        found = f"It is no JSON: {first['ctx']['error']}, at character {first['loc'][-1]}."
    else:
        where = "".join(
            f"[{key}]" if isinstance(key, int) else str(key)[:_NAME_LENGTH]
            for key in first["loc"][1:]
        )
        found = f"{where or 'The body'}: {first['msg']}."
        if first["type"] not in ("missing", "extra_forbidden"):
            found += f" Got {_kind_of(first.get('input'))}."
    columns = request.app.state.columns
    example = {"rows": [dict.fromkeys(columns, "a text")]} if columns else {"texts": ["a text"]}
    return JSONResponse(
        {
            "detail": f"The body must be JSON like {json.dumps(example)}, with "
            f"Content-Type application/json. {found}"
        },
        status_code=422,
    )


def _kind_of(value: Any) -> str:
    named = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    if isinstance(value, bytes):
        return "a body of another type"
    if isinstance(value, int | float):
        return "true or false" if isinstance(value, bool) else "a number"
    return named.get(type(value), "something else")
