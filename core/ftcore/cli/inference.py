"""Use what a run has learnt: predict, serve, export, measure, join."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftcore.errors import UserError

from .options import (
    PATH,
    LoggedCommand,
    json_option,
    out_option,
    print_result,
    run_argument,
    run_plugin_option,
    runs_argument,
    split_option,
    tta_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore.inference.model import Model
    from ftcore.types.task import Prediction


@click.command(cls=LoggedCommand)
@run_argument
@run_plugin_option
@click.argument("pictures", metavar="IMAGES...", nargs=-1, required=True, type=PATH)
@tta_option
@click.option("--why", type=PATH, metavar="FOLDER", help="write a Grad-CAM overlay of each prediction to this folder")
@click.option("--top", type=click.IntRange(1), metavar="N", help="print the N most probable classes per image")
@json_option(help="print one JSON object per image")
@click.option("--csv", "as_csv", is_flag=True, help="print CSV, one line per image")
@click.option(
    "--raw-csv", is_flag=True, help="with --csv: do not quote names that a spreadsheet would compute, as =1+1"
)
def predict(
    run: Path, pictures: tuple[Path, ...], *, tta: bool, why: Path | None, top: int | None, **forms: bool
) -> None:
    r"""Predict classes, labels or numbers for images.

    RUN is a run, an ensemble or a soup; IMAGES are files and folders.

    \b
    Examples:
      ftcore predict runs/first new/ --csv
      ftcore predict runs/first cat.jpg --top 3 --why heatmaps/
    """
    from ftcore.inference.load import load
    from ftcore.inference.output import PredictionWriter
    from ftcore.inference.predict import predict as predict_all
    from ftcore.system.cpu import retain_freed_memory
    from ftcore.types.task import Prediction

    retain_freed_memory()
    model, bad, good = load(run), [], 0
    spelling = PredictionWriter(model.task, top, **forms)
    drawings = _heatmap_writer(model, why)
    if spelling.header:
        click.echo(spelling.header)
    for answer in predict_all(model, pictures, tta=tta):
        if isinstance(answer, Prediction):
            good += 1
            click.echo(spelling.line(answer))
            drawings(answer)
        else:
            bad.append(str(answer))
    if bad:
        raise UserError("\n".join([*bad, f"{len(bad)} of {good + len(bad)} could not be read"]))


def _heatmap_writer(model: Model, folder: Path | None) -> Callable[[Prediction], None]:
    """Return what draws why a prediction is what it is, into a folder, if one is given."""
    if folder is None:
        return lambda _: None
    from ftcore.inference.gradcam import HeatMapWriter

    return HeatMapWriter(model, folder).draw


@click.command(cls=LoggedCommand)
@run_argument
@run_plugin_option
@click.option("--host", default="127.0.0.1", show_default=True, help="bind address (0.0.0.0: all interfaces)")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="port (0: any free port)")
@click.option(
    "--max-mb",
    type=click.FloatRange(0, min_open=True, max=1000),
    default=20.0,
    show_default=True,
    help="maximum upload size",
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(0, min_open=True, max=85),
    default=25.0,
    show_default=True,
    help="maximum image size",
)
@click.option(
    "--max-total-mb",
    type=click.FloatRange(1, max=1_000_000),
    default=256.0,
    show_default=True,
    help="maximum total size of concurrent uploads",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 60_000),
    default=512,
    show_default=True,
    help="maximum number of concurrent connections",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 65_536),
    default=32,
    show_default=True,
    help="maximum images per forward pass",
)
@click.option("--token-file", type=PATH, metavar="FILE", help="file with the bearer token that clients must send")
@click.option("--insecure", is_flag=True, help="serve on --host without a token")
@click.option("--allow-host", "names", multiple=True, metavar="NAME", help="additional host name to accept in requests")
@tta_option
def serve(run: Path, *, host: str, port: int, tta: bool, **given: Any) -> None:
    r"""Serve predictions over HTTP: POST /predict, and a page to try it.

    RUN is a run, an ensemble or a soup.

    \b
    Examples:
      ftcore serve runs/first --port 8080
      curl --data-binary @cat.jpg -H "Content-Type: image/jpeg" http://127.0.0.1:8080/predict
      ftcore serve runs/first --host 0.0.0.0 --token-file token --allow-host models.example.org
    """
    from ftcore.inference.load import load
    from ftcore.system.cpu import retain_freed_memory

    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if not find_spec(name)]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'ftcore[serve]'")
    from ftcore.inference import serve as inference_serve
    from ftcore.inference.serve_access import access_to, is_loopback
    from ftcore.inference.serve_limits import Limits

    access = access_to(host, given["names"], given["token_file"])
    if not (is_loopback(host) or access.token or given["insecure"]):
        raise UserError(
            f"--host {host} makes this model available to other machines: require a token with --token-file FILE, "
            "or allow everyone with --insecure if a firewall or proxy controls access"
        )
    retain_freed_memory()
    model = load(run)
    if tta and model.is_text_model:
        raise UserError(f"--tta needs images, but {run} takes texts")
    listening = inference_serve.bind(host, port)
    if not (is_loopback(host) or access.token):
        click.echo(f"ftcore: warning: anyone who can reach {host} can use this model without a token", err=True)
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"serving {run} at http://{shown}:{listening.getsockname()[1]}; press Ctrl-C to stop", err=True)
    limits = Limits(
        max_request_bytes=round(given["max_mb"] * 1e6),
        max_pixels=round(given["max_megapixels"] * 1e6),
        max_total_bytes=round(given["max_total_mb"] * 1e6),
        max_connections=given["max_connections"],
        batch=given["batch_size"],
    )
    inference_serve.serve(inference_serve.application(model, limits, tta=tta, access=access), listening)


@click.command(cls=LoggedCommand)
@run_argument
@run_plugin_option
@click.option("--format", "kind", type=click.Choice(["safetensors", "torch", "onnx", "hf"]), required=True)
@click.option("--out", type=PATH, metavar="FILE", help="default: named after the run")
@click.option("--int8", is_flag=True, help="with onnx: quantise to 8-bit integers and measure the change in accuracy")
def export(run: Path, kind: str, out: Path | None, *, int8: bool) -> None:
    r"""Export the model of a run for use without ftcore, and verify it.

    \b
    Examples:
      ftcore export runs/first --format onnx
      ftcore export runs/first --format hf --out model/
    """
    from ftcore.inference import export as exporting

    file = out or Path(f"{run.resolve().name}{'.int8' * int8}{exporting.SUFFIXES[kind]}")
    found = exporting.export(run, kind, file, int8=int8)
    before = " before quantisation" if int8 else ""
    said = (
        f"maximum difference {found.difference:.1g} from the run's model on {exporting.N_CHECK_INPUTS} inputs{before}"
    )
    click.echo(f"{found.file}: {found.note or said}", err=True)
    for line in found.quantisation_report:
        click.echo(line, err=True)
    for line in found.usage_code:
        click.echo(line)


@click.command(cls=LoggedCommand)
@run_argument
@run_plugin_option
@click.option("--data", "source", metavar="SOURCE", help="evaluate on this data instead of the run's")
@split_option
@tta_option
@json_option()
def evaluate(run: Path, source: str | None, split: str | None, *, tta: bool, as_json: bool) -> None:
    r"""Compute the loss and metrics of a run on a split or other data.

    RUN is a run, an ensemble or a soup. Without --split, other data is evaluated on its val, test or train split
    (the first that exists), or completely if it has no splits. It may have fewer classes than RUN; a class unknown
    to RUN is an error.

    \b
    Examples:
      ftcore evaluate runs/first --split test
      ftcore evaluate runs/first --data test/ --json
    """
    from ftcore.inference import evaluate as evaluating
    from ftcore.runs.measured_test import count_evaluation
    from ftcore.training.intervals import MeasuredOutputs, intervals

    evaluation = evaluating.prepare(run, source, split)
    seen = MeasuredOutputs()
    metrics = evaluating.compute_metrics(evaluation, tta=tta, seen=seen)
    found = intervals(evaluation.metrics, metrics, seen, evaluation.groups)
    values = evaluating.to_dict(run, evaluation, metrics, tta=tta) | {"intervals": found}
    if source is None and evaluation.measured.split in {"test", "all"}:
        count_evaluation(run)
    print_result(*evaluating.tables(evaluation, metrics, found["metrics"]), values=values, as_json=as_json)


@click.command(cls=LoggedCommand)
@runs_argument
@run_plugin_option
@out_option
@click.option("--weights", metavar="W,W,...", help="weight of each run, > 0 (default: equal)")
def ensemble(runs: tuple[Path, ...], out: Path, weights: str | None) -> None:
    """Combine runs into one model that averages their probabilities.

    The runs must have the same classes; networks, input sizes and normalisations may differ.
    """
    from ftcore.inference.ensemble import create_ensemble, parse_weights

    create_ensemble(runs, out, None if weights is None else parse_weights(weights))
    click.echo(str(out))


@click.command(cls=LoggedCommand)
@runs_argument
@run_plugin_option
@out_option
@click.option("--uniform", is_flag=True, help="use every checkpoint (default: only those that do not lower the score)")
def soup(runs: tuple[Path, ...], out: Path, *, uniform: bool) -> None:
    """Average the weights of runs into one network (model soup).

    Greedy soup: starting with the best checkpoint, each is kept if it does not lower the validation score of
    the average on the first run's split. `run.keep` sets how many checkpoints a run keeps.
    """
    from ftcore.inference.soup import make_soup

    print_result(make_soup(runs, out, uniform=uniform))
