"""A limit on the size of request bodies, kept before anything is made of them."""

from typing import Any

from starlette.responses import JSONResponse

_DRAINED = 16  # times the limit: what is read of too large a body, and thrown away

_Message = dict[str, Any]


class BodyLimit:
    """Answers 413 to a request whose body is too large, in place of the app behind it.

    Most clients read the answer only when they have sent everything, so the rest of such a body is
    read and thrown away; unless it is so large that the connection had better end.

    Parameters
    ----------
    app : ASGI application
    max_bytes : int
    """

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the app on the body if that is small enough."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, n_bytes, more = bytearray(), 0, True
        while more and n_bytes <= _DRAINED * self.max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            n_bytes += len(message.get("body", b""))
            if n_bytes <= self.max_bytes:
                body += message.get("body", b"")
            more = message.get("more_body", False)
        if n_bytes > self.max_bytes:
            refusal = JSONResponse(
                {
                    "detail": f"The body must have at most {self.max_bytes} bytes. It has more: "
                    "send fewer or shorter texts at a time."
                },
                status_code=413,
            )
            await refusal(scope, receive, send)
            return
        whole: list[_Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> _Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)
