"""Whether the hub is within reach, without ever waiting for a network that isn't there."""

from __future__ import annotations

import threading

NETWORK_SECONDS = 2.0


def hub_answers() -> bool:
    """Whether the hub answers at all; in a thread, because looking up its address can hang on its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=NETWORK_SECONDS)
            answered.set()
        except Exception as error:  # whatever the reason, it is out of reach; the caller says so
            del error

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(NETWORK_SECONDS + 0.3)
