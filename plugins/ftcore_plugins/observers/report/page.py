"""From what is known of a run to one HTML page."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ftcore.charts import number
from ftcore.runs import read_warnings

from . import curves, evaluation_sections
from .tables import Table, made_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import jinja2
    from tomlkit.container import Container

    from .record import Record


EACH = 500
"""Rows of a table, at most."""

WARNINGS = 50
"""That are shown, the newest."""

SHOWN_ELSEWHERE = frozenset({"hooks", "run folder", "plugins"})
"""What was decided and has a table of its own in the page."""


@frozen
class Setting:
    """One value of the configuration."""

    key: str
    value: str
    origin: str


@cache
def _template() -> jinja2.Template:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment.get_template("page.html.jinja")


def page(folder: Path, record: Record, epochs: Sequence[Mapping[str, Any]]) -> str:
    """Draw the page of a run.

    Args:
        folder: of the run; its ``config.toml`` and ``manifest.json`` are shown too, if they are there.
        record: of the run.
        epochs: see `ftcore_plugins.observers.report.record.read_epochs`.
    """
    manifest = _read_json(folder / "manifest.json")
    settings = _settings(folder)
    best = record.best[-1] if record.best else None
    return _template().render(
        name=folder.absolute().name,
        folder=str(folder),
        subject=_subject(manifest),
        state=_state(record, epochs),
        figures=[*_figures(record, epochs, best), *_test_figures(record, folder)],
        facts={name: text for name, text in record.facts.items() if name not in SHOWN_ELSEWHERE},
        learning=record.facts.get("trainable parameters", ""),
        curves=curves.epoch_figures(epochs, record.monitor, best),
        epoch_table=curves.epoch_table(epochs),
        step_curves=curves.step_figures(record),
        step_table=curves.step_table(record),
        evaluations=evaluation_sections.evaluations(record, epochs),
        data_tables=[made_of(table, EACH) for table in record.tables],
        learning_tables=[made_of(table, EACH) for table in record.learning],
        plugin_table=_plugins(manifest),
        set_table=_setting_table("Set for this run", [s for s in settings if s.origin != "default"]),
        default_table=_setting_table("Defaults", [s for s in settings if s.origin == "default"]),
        version_table=_versions(manifest),
        start_table=_starts(record),
        warnings=list(dict.fromkeys(text for _, text in read_warnings(folder / "log.jsonl")))[-WARNINGS:],
    )


def _read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _subject(manifest: Mapping[str, Any]) -> str:
    """Say what was trained on what."""
    config = manifest.get("config", {})
    return f"{config['model.name']} on {config['data.source']}" if config else ""


def _settings(folder: Path) -> list[Setting]:
    file = folder / "config.toml"
    return list(_parsed(file.read_text(encoding="utf-8"))) if file.is_file() else []


@cache
def _parsed(text: str) -> tuple[Setting, ...]:
    """Read a ``config.toml``, in which the origin of each value is a comment behind it."""
    import tomlkit

    return tuple(_values(tomlkit.parse(text), ""))


def _values(container: Container, prefix: str) -> Iterator[Setting]:
    from tomlkit.items import Item
    from tomlkit.items import Table as TomlTable

    for key in container:
        item = container.item(key)
        if isinstance(item, TomlTable):
            yield from _values(item.value, f"{prefix}{key}.")
        elif isinstance(item, Item) and key != "plugins":  # which have a table of their own
            yield Setting(f"{prefix}{key}".removeprefix("plugin."), item.as_string(), item.trivia.comment.lstrip("# "))


def _state(record: Record, epochs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return a word for where the run is, and a sentence."""
    end = record.starts[-1]["end"] if record.starts else None
    done = f"{len(epochs)} of {record.epochs} epochs"
    if end is None:
        return "training", f"{done} so far"
    if end == "finished":
        early, skipped = record.result.get("stopped_early"), record.result.get("skipped_steps")
        why = f": early stopping, {record.monitor} did not improve" if early else ""
        return "finished", f"{done}{why}" + (f"; {skipped:,} optimizer steps were skipped" if skipped else "")
    return "stopped", f"{done}; {end}"


def _figures(record: Record, epochs: Sequence[Mapping[str, Any]], best: int | None) -> list[tuple[str, str, str]]:
    """Return what is shown large: what it is, the value, and a remark."""
    found = []
    chosen = next((epoch for epoch in epochs if epoch["epoch"] == best), None)
    if chosen:
        found.append((f"best {record.monitor}", _four(chosen["val"][record.monitor]), f"epoch {best}"))
        others = [name for name in {"loss": 0, **chosen["val"]} if name not in {record.monitor, "thresholds"}]
        found += [(name, _four(chosen["val"][name]), f"validation, epoch {best}") for name in others[:2]]
        found += _gain(record, epochs, chosen)
    if epochs:
        seconds = sum(epoch["seconds"] for epoch in epochs)
        found.append(("epochs", f"{len(epochs)}", f"of {record.epochs}, in {_time(seconds)}"))
        found += _speed(epochs)
    if record.total_parameters:
        found.append(("trainable", f"{record.trainable_parameters:,}", f"of {record.total_parameters:,} parameters"))
    return found


def _test_figures(record: Record, folder: Path) -> list[tuple[str, str, str]]:
    """Show the monitored metric, or else the first, on the test split, and how often that was looked at."""
    test: Mapping[str, Any] = record.result.get("test") or {}
    if not test:
        return []
    ends = test["intervals"]["metrics"]
    name = record.monitor if record.monitor in ends else next(iter(ends), "loss")
    interval = f", 95 % interval {_four(ends[name][0])} to {_four(ends[name][1])}" if ends.get(name) else ""
    again = _read_json(folder / "test.json").get("evaluations", 0)
    looked = f"; measured {again} more times since, so no longer unseen" if again else "; measured once"
    return [(f"test {name}", _four(test[name]), f"{test['images']} images{interval}{looked}")]


def _speed(epochs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the images that all epochs trained on by the seconds in which they did, evaluation left out."""
    seconds = sum(epoch["training_seconds"] for epoch in epochs)
    if not seconds:
        return []
    images = sum(epoch["samples_per_second"] * epoch["training_seconds"] for epoch in epochs)
    return [("images per second", number(images / seconds), f"{images:,.0f} images trained on in {_time(seconds)}")]


def _gain(record: Record, epochs: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Compare the best epoch with the best of those, at the beginning, in which the new head alone learnt: a probe."""
    if len(record.releases) < 2 or record.releases[0][1] != sorted(record.heads):
        return []
    more: int = record.releases[1][0]
    probes = [epoch for epoch in record.best if epoch < more]
    if not probes or chosen["epoch"] < more:
        return []
    probe = next(epoch for epoch in epochs if epoch["epoch"] == probes[-1])["val"][record.monitor]
    gain = chosen["val"][record.monitor] - probe
    sign = "+" if gain >= 0 else "-"
    remark = f"{record.monitor} {_four(probe)} in epoch {probes[-1]}, before more than the head was trained"
    return [("gain over a linear probe", f"{sign}{_four(abs(gain))}", remark)]


def _four(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) and 1e-3 <= abs(value) < 1e3 else number(value)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _plugins(manifest: Mapping[str, Any]) -> Table:
    """One row for each plugin that had a say: what it answered, where it is from, who named it."""
    answers: dict[str, list[str]] = {}
    for hook, who in manifest.get("hooks", {}).items():
        for name in [who] if isinstance(who, str) else who:
            answers.setdefault(name, []).append(hook)
    for hook, who in manifest.get("wrappers", {}).items():
        for name in who:
            answers.setdefault(name, []).append(f"{hook} (wraps)")
    rows = [
        (
            plugin["name"],
            ", ".join(answers.get(plugin["name"], [])),
            plugin["source"],
            plugin["origin"],
            (plugin["sha256"] or "")[:12],
        )
        for plugin in manifest.get("plugins", [])
    ]
    return Table("Plugins", ("plugin", "answers", "from", "enabled by", "SHA-256 of its source"), tuple(rows))


def _setting_table(title: str, settings: Sequence[Setting]) -> Table:
    rows = tuple((setting.key, setting.value, setting.origin) for setting in settings)
    return Table(title, ("setting", "value", "set by"), rows)


def _versions(manifest: Mapping[str, Any]) -> Table:
    data = manifest.get("data", {})
    rows = [
        *manifest.get("libraries", {}).items(),
        *((name, str(value)) for name, value in manifest.get("machine", {}).items()),
        ("data", f"{data['source']}, {data['train']:,} to train on, {data['val']:,} to validate") if data else (),
        ("data fingerprint", str(data.get("fingerprint", ""))[:16]),
        ("fingerprint of the initial weights", str(manifest.get("weights", ""))[:16]),
        ("git commit", str(manifest.get("git_commit") or "none")),
    ]
    return Table("Versions", ("what", "which"), tuple(tuple(row) for row in rows if row) if manifest else ())


def _starts(record: Record) -> Table:
    rows = []
    for place, start in enumerate(record.starts):
        began = "begun" if not start["step"] else f"resumed after step {start['step']:,}, epoch {start['epoch'] + 1}"
        missing = "training" if place == len(record.starts) - 1 else "killed"
        rows.append((str(place + 1), start["at"], began, start["until"] or "", start["end"] or missing))
    return Table("Sessions (started and resumed)", ("", "when", "what", "until", "end"), tuple(rows))
