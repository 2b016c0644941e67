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
@click.argument("pictures", nargs=-1, required=True, type=PATH)
@tta_option
@click.option("--why", type=PATH, metavar="FOLDER", help="write a Grad-CAM heat map of each prediction there")
@click.option("--top", type=click.IntRange(1), metavar="N", help="the N most probable classes of each picture")
@json_option(help="print one JSON object a picture")
@click.option("--csv", "as_csv", is_flag=True, help="print a table, a line a picture")
@click.option(
    "--raw-csv", is_flag=True, help="with --csv: do not quote names that a spreadsheet would compute, as =1+1"
)
def predict(
    run: Path, pictures: tuple[Path, ...], *, tta: bool, why: Path | None, top: int | None, **forms: bool
) -> None:
    r"""Predict the classes of images, or their numbers.

    RUN is a run, an ensemble or a soup; PICTURES are files and folders.

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
@click.option("--host", default="127.0.0.1", show_default=True, help="bind address; 0.0.0.0 for all interfaces")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one")
@click.option(
    "--max-mb",
    type=click.FloatRange(0, min_open=True, max=1000),
    default=20.0,
    show_default=True,
    help="of an upload, at most",
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(0, min_open=True, max=85),
    default=25.0,
    show_default=True,
    help="of an image, at most",
)
@click.option(
    "--max-total-mb",
    type=click.FloatRange(1, max=1_000_000),
    default=256.0,
    show_default=True,
    help="of all uploads at a time, at most",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 60_000),
    default=512,
    show_default=True,
    help="clients at a time, at most",
)
@click.option(
    "--batch-size", type=click.IntRange(1, 65_536), default=32, show_default=True, help="images a pass, at most"
)
@click.option("--token-file", type=PATH, metavar="FILE", help="clients must send its content as a bearer token")
@click.option("--insecure", is_flag=True, help="let everyone who reaches --host use the model, without a token")
@click.option(
    "--allow-host", "names", multiple=True, metavar="NAME", help="more names by which clients call the server"
)
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
            f"--host {host} lets other machines use this model: --token-file FILE asks them for a token; --insecure "
            "lets everyone, where a firewall or a proxy decides who may"
        )
    retain_freed_memory()
    model = load(run)
    if tta and model.is_text_model:
        raise UserError(f"--tta looks at the mirror image of each picture, and {run} reads texts")
    listening = inference_serve.bind(host, port)
    if not (is_loopback(host) or access.token):
        click.echo(f"ftcore: warning: whoever reaches {host} can use this model, without a password", err=True)
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"{run} answers at http://{shown}:{listening.getsockname()[1]}; Ctrl-C ends it", err=True)
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
@click.option("--out", type=PATH, metavar="FILE", help="by default named after the run")
@click.option("--int8", is_flag=True, help="with onnx: quantise to 8-bit integers, and measure the loss of accuracy")
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
    before = " before it was quantised" if int8 else ""
    said = f"at most {found.difference:.1g} from the run's model on {exporting.N_CHECK_INPUTS} inputs{before}"
    click.echo(f"{found.file}: {found.note or said}", err=True)
    for line in found.quantisation_report:
        click.echo(line, err=True)
    for line in found.usage_code:
        click.echo(line)


@click.command(cls=LoggedCommand)
@run_argument
@run_plugin_option
@click.option("--data", "source", metavar="SOURCE", help="measure on other data than the run's own")
@split_option
@tta_option
@json_option()
def evaluate(run: Path, source: str | None, split: str | None, *, tta: bool, as_json: bool) -> None:
    r"""Compute the loss and metrics of a run on a split or other data.

    RUN is a run, an ensemble or a soup. Other data without splits is measured whole; of several splits, val, test or
    train, the first that is there. It may have fewer classes than RUN; one that RUN does not know is an error.

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
@click.option("--weights", metavar="W,W,...", help="how much each run counts, > 0; by default the same")
def ensemble(runs: tuple[Path, ...], out: Path, weights: str | None) -> None:
    """Combine runs into one model that averages their probabilities.

    They must know the same classes; networks, input sizes and normalisations may differ.
    """
    from ftcore.inference.ensemble import create_ensemble, parse_weights

    create_ensemble(runs, out, None if weights is None else parse_weights(weights))
    click.echo(str(out))


@click.command(cls=LoggedCommand)
@runs_argument
@run_plugin_option
@out_option
@click.option("--uniform", is_flag=True, help="take every checkpoint; by default only those that do no harm")
def soup(runs: tuple[Path, ...], out: Path, *, uniform: bool) -> None:
    """Average the weights of runs into one network (model soup).

    From the best checkpoint down, each stays if the mean with it is no worse on the validation split of the first
    run. `run.keep` says how many checkpoints a run leaves.
    """
    from ftcore.inference.soup import make_soup

    print_result(make_soup(runs, out, uniform=uniform))
