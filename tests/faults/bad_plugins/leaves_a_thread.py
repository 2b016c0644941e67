import threading
from collections.abc import Sequence

from ftcore import Event, Observer, hookimpl


def observe(event: Event) -> None: ...


@hookimpl
def make_observers() -> Sequence[Observer]:
    threading.Thread(target=threading.Event().wait, name="acme-sender", daemon=True).start()
    return [observe]
