"""Serve a saved classifier over HTTP. README.md beside this file says how.

SKGPT_SERVE_FOLDER=news-classifier python examples/serve
"""

import os
import signal
import sys

from app import create_app
from server import check_address, serve
from settings import Settings, SettingsError

import skgpt
from skgpt.exceptions import SkgptError


def main() -> None:
    """Load the classifier and serve it."""
    # Ctrl-C ends the process without a traceback, while the model is read and after a stop.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        settings = Settings.from_environment(os.environ)
        check_address(settings)
        skgpt.set_cache_memory(0)  # nothing is fitted here that could ask for a text again
        trusted = [name.strip() for name in settings.trusted.split(",") if name.strip()]
        app = create_app(skgpt.load(settings.folder, trusted=trusted), settings)
    except (SettingsError, SkgptError, ValueError) as error:
        sys.exit(f"serve: {error}")
    serve(app, settings)


if __name__ == "__main__":
    main()
