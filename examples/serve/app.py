"""The web application: texts in, labels and probabilities out, by a classifier that is loaded."""

import asyncio
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


class Texts(BaseModel):
    """What `/classify` takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str]


class Answer(BaseModel):
    """What `/classify` gives, in the order of the texts.

    A row of `probabilities` is in the order of `classes`. A label is one of `classes`; for a
    multilabel classifier it is a list of them.
    """

    classes: list[Label]
    labels: list[Label | list[Label]]
    probabilities: list[list[float]]


class Health(BaseModel):
    """What `/health` gives."""

    status: str
    unanswered_texts: int


def create_app(classifier: Any, settings: Settings) -> FastAPI:
    """Return the application; all it knows is in its `state`.

    Parameters
    ----------
    classifier : GPTTextClassifier
        Fitted on texts (not on several columns).
    settings : Settings

    Raises
    ------
    ValueError
        If the classifier can't classify a plain text.
    """
    # The first prediction is slower than others, and shows whether there can be any.
    multilabel = classifier.predict(["a text"]).ndim == 2

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with app.state.batcher.running():
            yield

    app = FastAPI(title="skgpt", lifespan=lifespan)
    app.state.settings = settings
    app.state.classes = classifier.classes_
    app.state.multilabel = multilabel
    app.state.batcher = Batcher(
        classifier.predict_proba,
        max_texts=settings.batch_texts,
        max_wait=settings.batch_wait_ms / 1000,
        max_unanswered=settings.queue_texts,
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_bytes)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_api_route("/classify", classify, methods=["POST"], response_model=Answer)
    app.add_api_route("/health", health, response_model=Health)
    return app


async def classify(body: Texts, request: Request) -> Answer:
    """Classify a batch of texts."""
    state = request.app.state
    _check_limits(body.texts, state.settings)
    try:
        rows = await state.batcher.submit(body.texts)
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
    probabilities = np.asarray(rows)
    classes = state.classes
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


def _check_limits(texts: list[str], settings: Settings) -> None:
    if not texts:
        raise HTTPException(422, "`texts` must hold at least one text. Got an empty list.")
    if len(texts) > settings.max_texts:
        raise HTTPException(
            422,
            f"`texts` must hold at most {settings.max_texts} texts. Got {len(texts)}: send them in "
            "several requests.",
        )
    for row, text in enumerate(texts):
        if len(text) > settings.max_characters:
            raise HTTPException(
                422,
                f"A text must have at most {settings.max_characters} characters. texts[{row}] has "
                f"{len(text)}: cut it.",
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
    return JSONResponse(
        {
            "detail": 'The body must be JSON like {"texts": ["a text", "another"]}, with '
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
