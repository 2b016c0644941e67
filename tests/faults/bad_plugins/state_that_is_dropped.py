from collections.abc import Mapping, Sequence

from ftcore import Event, Observer, hookimpl


class Counter:
    seen = 0

    def observe(self, event: Event) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...


@hookimpl
def make_observers() -> Sequence[Observer]:
    return [Counter().observe]
