"""The seam for tasks: any that keeps to `engine.tasks.base` can be trained, evaluated and reported."""

import inspect

import pytest

from engine.evaluation.classes import ClassEvaluator, ClosingClassEvaluator
from engine.evaluation.knn import Bank, Neighbours
from engine.tasks import TASKS
from engine.tasks.base import ClosingEvaluator, Evaluator, Task


def methods(protocol) -> dict:
    return {name: value for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"}


def arguments(method) -> list[str]:
    return list(inspect.signature(method).parameters)


@pytest.mark.parametrize(
    "protocol, made",
    [
        *((Task, task) for task in TASKS.values()),
        (Evaluator, ClassEvaluator),
        (Evaluator, Bank),
        (Evaluator, Neighbours),
        (ClosingEvaluator, ClosingClassEvaluator),
    ],
)
def test_a_protocol_is_kept_to(protocol, made):
    assert methods(protocol)
    for name, method in methods(protocol).items():
        assert arguments(getattr(made, name)) == arguments(method), name
    assert all(hasattr(made, name) for name in protocol.__annotations__)
