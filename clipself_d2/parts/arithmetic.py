"""Arithmetic written as text, as configs of Detectron2's model zoo hold it, without ``eval``."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

# Far above what a config holds; below what costs time or memory.
MAX_LENGTH = 1000
_MAX_NUMBER = 1e18
_MAX_POWER = 64

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
        return _value(ast.parse(text.strip(), mode="eval").body, {})
    except (SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no arithmetic: {error}") from error
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """A number, or a list or tuple; ``names`` has the value for which a list is being made."""
    if isinstance(node, ast.List | ast.Tuple):
        items = [_value(item, names) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    # Not inside another such list, whose lengths would multiply.
    if isinstance(node, ast.ListComp) and len(node.generators) == 1 and not names:
        loop = node.generators[0]
        values = _value(loop.iter, {})
        if isinstance(loop.target, ast.Name) and not loop.ifs and isinstance(values, list | tuple):
            return [_value(node.elt, {loop.target.id: value}) for value in values]
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    number = _number(node, names)
    if not isinstance(number, int | float) or abs(number) > _MAX_NUMBER:
        raise ValueError(f"{ast.unparse(node)!r} is no number up to {_MAX_NUMBER:g}")
    return number


def _number(node: ast.expr, names: Mapping[str, Any]) -> Any:
    def numbers(*parts: ast.expr) -> list[Any]:
        found = [_value(part, names) for part in parts]
        if not all(isinstance(value, int | float) for value in found):
            raise ValueError(f"{ast.unparse(node)!r} reckons with what is no number")
        return found

    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](*numbers(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = numbers(node.left, node.right)
        # Whole numbers of Python grow without end, and with them the time.
        if isinstance(node.op, ast.Pow) and abs(right) > _MAX_POWER:
            raise ValueError(f"the power {right} is above {_MAX_POWER}")
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _CALLS.get(node.func.id)
        if function is not None:
            return function(*(_value(part, names) for part in node.args))
    raise ValueError(f"{ast.unparse(node)!r} is neither a number nor arithmetic of numbers")
