"""The new head alone, solved for instead of trained."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen, validators

from ftcore import Recipe, UserError, hookimpl
from ftcore.console import print_progress
from ftcore.model import is_submodule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    import torch
    from torch import nn

    from ftcore import Context, ParamGroup, Precision, RunConfig, Step, Task


CHUNK, MAX_CHUNKS = 1024, 10_000
"""Images whose features go through the head at a time; how many of those a step takes, at most."""

IMAGES = 64
"""Images that go through the network at a time, once."""

FINAL_ITERATIONS = 100
"""Iterations, at most, of whole steps behind those along which a line is searched."""

PROGRESS_S = 5.0
"""Seconds, at least, between two lines that say how far it is."""


@frozen
class ProbeSolverConfig:
    """Options of `probe_solver`.

    Attributes:
        C: inverse regularisation strength, > 0, as in `sklearn.linear_model.LogisticRegression`: smaller values
            penalise the head's weights more (not its bias).
        max_iter: iterations of L-BFGS, > 0.
        tol: stop if the largest gradient element is below this, > 0; as in scikit-learn.
    """

    C: float = field(default=1.0, validator=validators.gt(0))
    max_iter: int = field(default=1000, validator=validators.gt(0))
    tol: float = field(default=1e-4, validator=validators.gt(0))


class ProbeSolver:
    """Linear probe fitted by L-BFGS on all training images at once, in one epoch, without a learning rate.

    Minimises the mean loss + |W|^2 / (2 C N) over N images (Liu and Nocedal 1989; strong Wolfe line search, as in
    `torch.optim.LBFGS`); with the cross-entropy it is scikit-learn's logistic regression on the features.
    """

    Config = ProbeSolverConfig

    def __init__(self, config: ProbeSolverConfig) -> None:
        self.config = config

    def recipe(self) -> Recipe:
        """Name `freeze_backbone`, and let one step see all images."""
        steps = {"train.epochs": 1, "train.batch_size": CHUNK, "train.accumulate": MAX_CHUNKS}
        return Recipe(("freeze_backbone",), {**steps, "train.eval_batch_size": IMAGES})

    @hookimpl
    def make_optimizer(self, param_groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        """Answer with one that has nothing left to do."""
        from torch.optim import Optimizer

        class Solved(Optimizer):
            def step(self, closure: Any = None) -> Any:
                """Leave the parameters where they are."""

        return Solved([{"params": list(group.params.values())} for group in param_groups], {"lr": 1.0})

    @hookimpl(wrapper=True)
    def make_step(
        self,
        model: nn.Module,
        heads: Sequence[str],
        task: Task,
        precision: Precision,
        config: RunConfig,
        ctx: Context,
    ) -> Generator[None, Step, Step]:
        """Go round the gradient of the step that another plugin makes, as often as it takes."""
        step = yield
        _check(model, heads, precision, ctx.ranks.world_size)
        _check_settings(config, task)
        decay = 1 / (self.config.C * task.images)
        max_iter, tol = self.config.max_iter, self.config.tol

        def gradient(inner: Callable[[], Any]) -> Any:
            watched = _watched(inner, [p for p in model.parameters() if p.requires_grad], ctx)
            terms, steepest = step.run_backward(lambda: minimise_lbfgs(watched, model, decay, max_iter, tol))
            if steepest > tol:
                ctx.log.warning(
                    "the head fit did not converge; increase probe_solver.max_iter or lower probe_solver.C",
                    gradient=steepest,
                )
            return terms

        return evolve(step, wrap_backward=gradient)


def _check(model: nn.Module, heads: Sequence[str], precision: Precision, processes: int) -> None:
    """Refuse what L-BFGS does not work with: it wants the same loss for the same parameters, of all images."""
    others = [name for name, p in model.named_parameters() if p.requires_grad and not is_submodule_of(name, heads)]
    if others:
        raise UserError(f"probe_solver fits the head of a frozen network, but {', '.join(others[:3])} is trainable too")
    if processes > 1:
        raise UserError(f"probe_solver works in one process, but there are {processes}")
    if precision.scaler.is_enabled():
        raise UserError(f"probe_solver does not support the loss scaling of {precision.name}; use fp32 or bf16")


def _check_settings(config: RunConfig, task: Task) -> None:
    """Refuse a step of fewer images than there are, and what would change a gradient that nobody follows."""
    train = config.train
    if train.batch_size * train.accumulate < task.images:
        raise UserError(
            f"train.batch_size = {train.batch_size} and train.accumulate = {train.accumulate} make steps of "
            f"{train.batch_size * train.accumulate:,} images, and probe_solver takes all {task.images:,} in one "
            f"({config.origin('train.batch_size')}, {config.origin('train.accumulate')})"
        )
    clipped = [name for name in ("clip_norm", "clip_value", "clip_adaptive") if getattr(train, name)]
    if clipped:
        raise UserError(
            f"train.{clipped[0]} has no effect with probe_solver, which does not take gradient steps "
            f"({config.origin(f'train.{clipped[0]}')})"
        )


def _watched(gradient: Callable[[], Any], params: Sequence[nn.Parameter], ctx: Context) -> Callable[[], Any]:
    """Let the run heed signals before each pass over all images, and say now and then how far it is."""
    began = [p.detach().clone() for p in params]
    passes, said = 0, time.monotonic()

    def watched() -> Any:
        nonlocal passes, said
        reached = [p.detach().clone() for p in params]
        _give(params, began)
        ctx.on_boundary()
        _give(params, reached)
        terms, passes = gradient(), passes + 1
        if time.monotonic() - said >= PROGRESS_S:
            said = time.monotonic()
            print_progress(f"fitting the head: {passes:,} passes over the images, loss {float(terms['loss']):.6f}")
        return terms

    return watched


def _give(params: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.data.copy_(value)


def minimise_lbfgs(
    gradient: Callable[[], Mapping[str, Any]], model: nn.Module, decay: float, max_iter: int, tol: float
) -> tuple[dict[str, Any], float]:
    """Bring the parameters that learn to where the loss is smallest, and leave its gradient there in them.

    Args:
        gradient: adds the gradient of the mean loss to the parameters, and returns the loss as ``loss``.
        model: whose parameters are meant.
        decay: factor on half the sum of the squares of all that are no vectors.
        max_iter: see `ProbeSolverConfig`.
        tol: likewise.

    Returns:
        What `gradient` returns there, with the penalty as ``l2``; and the largest number of the gradient there.
    """
    import torch

    params = [p for p in model.parameters() if p.requires_grad]
    terms: dict[str, Any] = {}

    def closure() -> Any:
        for p in params:
            p.grad = None
        terms.update(gradient())
        with torch.no_grad():
            weights = [p for p in params if p.ndim > 1]
            terms["l2"] = torch.stack([p.float().square().sum() for p in weights]).sum() * (decay / 2)
            for p in weights:
                assert p.grad is not None
                p.grad.add_(p, alpha=decay)
        return (terms["loss"] + terms["l2"]).detach()

    solver: Any = torch.optim.LBFGS(
        params,
        max_iter=max_iter,
        max_eval=3 * max_iter,
        tolerance_grad=tol,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    solver.step(closure)
    left = max_iter - solver.state[params[0]]["n_iter"]
    if left > 0:  # the loss has no more digits to search a line by, the gradient has
        solver.param_groups[0].update(line_search_fn=None, max_iter=min(left, FINAL_ITERATIONS))
        solver.step(closure)
    closure()  # where it ended, which need not be where it looked last
    return terms, max(float(p.grad.abs().max()) for p in params if p.grad is not None)
