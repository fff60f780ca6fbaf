"""Arithmetic written as text, as configs of Detectron2's model zoo hold it, without ``eval``."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

# Far above what a config holds; below what costs time or memory.
MAX_LENGTH = 1000
_MAX_STEPS = 10_000
_MAX_NUMBER = 1e18
_MAX_POWER = 64
_MAX_ITEMS = 10_000

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_CALLS: Mapping[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "round": round,
    "min": min,
    "max": max,
}


def evaluate(text: str) -> Any:
    """Work out an expression of numbers, lists and tuples.

    Args:
        text: Numbers, + - * / // % **, brackets, ``int``, ``float``, ``round``, ``min``, ``max``,
            and lists of the form ``[f(x) for x in values]``.

    Returns:
        A number, or a list or tuple of such.

    Raises:
        ValueError: If it holds anything else, or is too long or too large.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"an expression of {len(text)} characters; at most {MAX_LENGTH} are read")
    try:
        return _Evaluation().value(ast.parse(text.strip(), mode="eval").body, {})
    except (SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no arithmetic: {error}") from error
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


class _Evaluation:
    def __init__(self) -> None:
        self._steps = 0

    def value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ValueError("it takes too many steps")
        return _bounded(self._value(node, names))

    def _value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.List | ast.Tuple):
            items = [self.value(item, names) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            return _UNARY[type(node.op)](_number(self.value(node.operand, names)))
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            left, right = (self.value(side, names) for side in (node.left, node.right))
            if isinstance(node.op, ast.Pow) and abs(_number(right)) > _MAX_POWER:
                raise ValueError(f"the power {right} is above {_MAX_POWER}")
            return _BINARY[type(node.op)](_number(left), _number(right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            function = _CALLS.get(node.func.id)
            if function is not None:
                return function(*(self.value(item, names) for item in node.args))
        if isinstance(node, ast.ListComp) and len(node.generators) == 1:
            return self._list(node.elt, node.generators[0], names)
        raise ValueError(f"{ast.unparse(node)!r} is neither a number nor arithmetic of numbers")

    def _list(self, item: ast.expr, loop: ast.comprehension, names: Mapping[str, Any]) -> list[Any]:
        values = self.value(loop.iter, names)
        if (
            not isinstance(loop.target, ast.Name)
            or loop.ifs
            or not isinstance(values, list | tuple)
        ):
            raise ValueError("a list is made of one name that takes the values of another list")
        return [self.value(item, {**names, loop.target.id: value}) for value in values]


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return value


def _bounded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if len(value) > _MAX_ITEMS:
            raise ValueError(f"it has {len(value)} items")
    elif not isinstance(value, int | float) or abs(value) > _MAX_NUMBER:
        raise ValueError(f"a {type(value).__name__} that is no number up to {_MAX_NUMBER:g}")
    return value
