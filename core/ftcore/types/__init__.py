"""The values that hooks take and return, and the events of a run; `ftcore` exports them."""

__all__: list[str] = []
