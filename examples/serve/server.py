"""The server around the application: it tells the application of a stop as soon as it is asked."""

import os
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from settings import Settings, SettingsError


class Server(uvicorn.Server):
    """A server that passes on that it is to stop, before it stops listening.

    Parameters
    ----------
    config : uvicorn.Config
    on_stop : callable
        Called in a signal handler.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Pass the signal on to the application and to the server."""
        self.on_stop()
        super().handle_exit(sig, frame)


def check_address(settings: Settings) -> None:
    """Check that the address can be listened on, before a model is read for it.

    Raises
    ------
    SettingsError
        If it can't.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            if os.name == "posix":  # as asyncio: what a server has just left is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        raise SettingsError(
            "SKGPT_SERVE_HOST and SKGPT_SERVE_PORT must name an address of this machine that is "
            f"free. Got {settings.host}, port {settings.port}: {error}."
        ) from error


def serve(app: FastAPI, settings: Settings) -> None:
    """Answer requests until SIGTERM or Ctrl-C, and then those that were accepted."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        timeout_graceful_shutdown=settings.stop_seconds,
    )
    Server(config, app.state.batcher.refuse_new).run()
