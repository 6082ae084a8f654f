"""Small changes of Python code, at the places that the syntax tree names.

Left out are annotations, decorators, asserts, text, what makes the messages of errors, and what only type checkers see.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mutant import Change

COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.MatMult: "*",
}


class Code:
    """A file's text, and where its nodes lie in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = [0]
        for line in text.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    def place(self, line: int, column: int) -> int:
        """Columns are counted in bytes."""
        start = self.lines[line - 1]
        return start + len(self.text[start : self.lines[line]].encode()[:column].decode())

    def start(self, node: ast.AST) -> int:
        return self.place(node.lineno, node.col_offset)

    def end(self, node: ast.AST) -> int:
        return self.place(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.AST) -> str:
        return self.text[self.start(node) : self.end(node)]


def children(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below this one in which something may be changed."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if is_for_type_checkers(node):
        return
    skipped = {"annotation", "returns", "decorator_list", "type_params", "bases"}
    for field, value in ast.iter_fields(node):
        if field in skipped:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in children(node):
        yield from walk(child)


def changes(text: str) -> list[Change]:
    """All small changes of a Python file."""
    code = Code(text)
    return [change for node in walk(ast.parse(text)) for change in changes_of(node, code)]


def replaced(code: Code, node: ast.AST, new: str, kind: str) -> Change:
    return Change(code.start(node), code.end(node), new, kind)


def between(code: Code, left: ast.AST, right: ast.AST, new: str, kind: str) -> Change:
    """A change of the operator between two operands. There may be brackets beside it."""
    start, end = code.end(left), code.start(right)
    gap = code.text[start:end]
    begin = len(gap) - len(gap.lstrip(" \t\n)"))
    stop = len(gap.rstrip(" \t\n("))
    return Change(start + begin, start + stop, new, kind)


def changes_of(node: ast.AST, code: Code) -> Iterator[Change]:
    match node:
        case ast.Compare():
            operands = [node.left, *node.comparators]
            for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
                yield between(code, left, right, COMPARISONS[type(operator)], "comparison")
        case ast.BinOp() if type(node.op) in OPERATORS and not is_text(node.left):
            yield between(code, node.left, node.right, OPERATORS[type(node.op)], "arithmetic")
        case ast.BoolOp():
            new = "or" if isinstance(node.op, ast.And) else "and"
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield between(code, left, right, new, "logic")
        case ast.UnaryOp(op=ast.Not()):
            yield replaced(code, node, f"bool({code.of(node.operand)})", "condition")
        case ast.Constant():
            yield from constant_changes(node, code)
        case ast.If() | ast.IfExp() if not is_for_type_checkers(node):
            yield replaced(code, node.test, f"not ({code.of(node.test)})", "condition")
            yield replaced(code, node.test, "False", "condition")
        case ast.While():
            yield replaced(code, node.test, "False", "condition")
        case ast.Break():
            yield replaced(code, node, "continue", "jump")
        case ast.Continue():
            yield replaced(code, node, "break", "jump")
        case ast.Raise():
            yield replaced(code, node, "pass", "statement")
        case ast.AugAssign():
            yield replaced(code, node, "pass", "statement")
        case ast.Assign() if not isinstance(node.targets[0], ast.Name | ast.Tuple):
            yield replaced(code, node, "pass", "statement")
        case ast.Expr(value=ast.Call()):
            yield replaced(code, node, "pass", "statement")
        case ast.Return(value=ast.AST() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield replaced(code, node, "return None", "return")
        case ast.Call(args=[first, second, *_]) if not isinstance(first, ast.Starred):
            if not isinstance(second, ast.Starred) and code.of(first) != code.of(second):
                start, end = code.start(first), code.end(second)
                gap = code.text[code.end(first) : code.start(second)]
                yield Change(start, end, code.of(second) + gap + code.of(first), "arguments")


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def constant_changes(node: ast.Constant, code: Code) -> Iterator[Change]:
    value = node.value
    if isinstance(value, bool):
        yield replaced(code, node, str(not value), "constant")
    elif isinstance(value, int):
        for new in {value + 1, value - 1} if value else {1}:
            yield replaced(code, node, str(new) if new >= 0 else f"({new})", "constant")
    elif isinstance(value, float):
        yield replaced(code, node, f"{2 * value}" if value else "1.0", "constant")
