"""Small changes of C code.

The code is taken apart into tokens, not parsed, so macros with whole functions in them are changed as functions are. A
change that does not compile is not counted. clang-format has put a blank on both sides of each operator with two
operands, and of no other sign: so a product is told from a pointer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from mutant import Change

TOKEN = re.compile(
    r"""(?P<skip>\s+|\\\n|/\*.*?\*/|//[^\n]*)
      | (?P<directive>(?<![^\n])[ ]*\#[ ]*(?:define[ ]+\w+(?:\([^)]*\))?|(?:[^\n\\]|\\\n|\\.)*))
      | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<number>(?:0[xX][0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?(?:[pP][+-]?\d+)?|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)[uUlLfF]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<sign><<=|>>=|\.\.\.|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|.)""",
    re.X | re.S,
)
SWAPPED = {
    "+": ("arithmetic", "-"),
    "-": ("arithmetic", "+"),
    "*": ("arithmetic", "/"),
    "/": ("arithmetic", "*"),
    "%": ("arithmetic", "/"),
    "<": ("comparison", "<="),
    "<=": ("comparison", "<"),
    ">": ("comparison", ">="),
    ">=": ("comparison", ">"),
    "==": ("comparison", "!="),
    "!=": ("comparison", "=="),
    "&&": ("logic", "||"),
    "||": ("logic", "&&"),
    "&": ("bits", "|"),
    "|": ("bits", "&"),
    "^": ("bits", "|"),
    "<<": ("bits", ">>"),
    ">>": ("bits", "<<"),
    "+=": ("arithmetic", "-="),
    "-=": ("arithmetic", "+="),
    "*=": ("arithmetic", "/="),
    "/=": ("arithmetic", "*="),
    "|=": ("bits", "&="),
    "&=": ("bits", "|="),
    "^=": ("bits", "|="),
    "<<=": ("bits", ">>="),
    ">>=": ("bits", "<<="),
}
JUMPS = {"break": "continue", "continue": "break"}
# What an expression statement cannot begin with.
CONTROL = {"return", "if", "for", "while", "do", "switch", "case", "default", "break", "continue", "goto", "else"}
TYPES = {"unsigned", "int", "long", "char", "double", "float", "void", "size_t", "struct", "enum", "union"}
NOT_EXPRESSION = CONTROL | TYPES | {"typedef", "static", "const", "extern", "inline", "_Alignas", "BODY"}
CASTS = re.compile(r"float|double|T|OTHER|BITS|size_t|unsigned|int|long|enum dtype|u?int(8|16|32|64)_t|int64_t")
# Calls and declarations in which nothing is changed: what the compiler is told, and no behaviour.
TOLD = frozenset(("_Static_assert", "__attribute__", "_Alignas", "__builtin_expect"))


class Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """The tokens that may be changed."""
    found = [
        Token(str(match.lastgroup), match[0], match.start(), match.end())
        for match in TOKEN.finditer(text)
        if match.lastgroup != "skip"
    ]
    kept = []
    k = 0
    while k < len(found):
        if found[k].text in TOLD and k + 1 < len(found):
            k = closing(found, k + 1)
            kept.append(Token("directive", "", found[k].start, found[k].end))
        else:
            kept.append(found[k])
        k += 1
    return kept


def closing(found: list[Token], at: int) -> int:
    """The index of the bracket that closes the one at this index; the last index if there is none."""
    depth = 0
    for k in range(at, len(found)):
        depth += (found[k].text in "([{") - (found[k].text in ")]}") if found[k].kind == "sign" else 0
        if not depth:
            return k
    return len(found) - 1


def number_changes(token: Token) -> Iterator[Change]:
    is_hex, has_point = token.text[:2].lower() == "0x", any(c in token.text for c in ".pP")
    digits = token.text.rstrip("uUlL" if is_hex and not has_point else "uUlLfF")
    suffix = token.text[len(digits) :]
    if is_hex and not has_point:
        yield Change(token.start, token.end, f"{int(digits, 16) ^ 1:#x}{suffix}", "constant")
    elif digits.isdigit():
        n = int(digits)
        for m in {n + 1, n - 1} if n else {1}:
            yield Change(token.start, token.end, f"{m}{suffix}", "constant")
    else:
        is_zero = not (float.fromhex(digits) if is_hex else float(digits))
        yield Change(token.start, token.end, f"1.0{suffix}" if is_zero else f"(2 * {token.text})", "constant")


def condition_changes(found: list[Token], k: int, text: str) -> Iterator[Change]:
    """Of an `if` at this index: the condition is negated, and never true."""
    start, end = found[k + 1].start, found[closing(found, k + 1)].end
    yield Change(start, end, f"(!{text[start:end]})", "condition")
    yield Change(start, end, "(0)", "condition")


def argument_changes(found: list[Token], k: int, text: str) -> Iterator[Change]:
    """Of a call whose bracket is at this index: neighbouring arguments are exchanged."""
    end = closing(found, k)
    cuts = [k]
    depth = 0
    for j in range(k + 1, end):
        if found[j].kind == "sign":
            depth += (found[j].text in "([{") - (found[j].text in ")]}")
            if found[j].text == "," and not depth:
                cuts.append(j)
    cuts.append(end)
    parts = [(found[a + 1].start, found[b - 1].end) for a, b in pairwise(cuts) if b > a + 1]
    for (a, b), (c, d) in pairwise(parts):
        if text[a:b] != text[c:d]:
            yield Change(a, d, text[c:d] + text[b:c] + text[a:b], "arguments")


def bracket_changes(found: list[Token], k: int, text: str) -> Iterator[Change]:
    """Of an opening bracket: that of a call, or of a cast, which is removed."""
    before, end = found[k - 1], closing(found, k)
    if before.kind == "name" and before.text not in NOT_EXPRESSION:
        if found[k - 2].kind != "name" or found[k - 2].text in ("return", "else"):
            yield from argument_changes(found, k, text)
    elif CASTS.fullmatch(text[found[k].end : found[end].start]):
        after = found[end + 1]
        if after.kind in ("name", "number") or after.text == "(":
            yield Change(found[k].start, found[end].end, "", "cast")


def sign_changes(token: Token, text: str) -> Iterator[Change]:
    has_two_operands = text[token.start - 1].isspace() and text[token.end].isspace()
    if token.text in SWAPPED and has_two_operands:
        kind, new = SWAPPED[token.text]
        yield Change(token.start, token.end, new, kind)
    elif token.text in ("++", "--"):
        yield Change(token.start, token.end, "--" if token.text == "++" else "++", "arithmetic")


def word_changes(token: Token) -> Iterator[Change]:
    """Of a jump or a status."""
    if token.text in JUMPS:
        yield Change(token.start, token.end, JUMPS[token.text], "jump")
    elif token.text == "GDM_OK":
        yield Change(token.start, token.end, "GDM_ERR_NULL", "status")
    elif token.text.startswith("GDM_ERR_"):
        other = "GDM_ERR_NULL" if token.text != "GDM_ERR_NULL" else "GDM_ERR_MEMORY"
        for new in (other, "GDM_OK"):
            yield Change(token.start, token.end, new, "status")


def is_statement(found: list[Token], k: int) -> bool:
    """Whether an expression statement begins at this index."""
    first, second, before = found[k], found[k + 1], found[k - 1]
    follows = before.text in (";", "{", "}", "else") or before.kind == "directive"
    if not follows and not (before.text == ")" and follows_header(found, k - 1)):
        return False
    if first.kind == "name":
        declares = second.kind == "name" or (second.text == "*" and second.end == found[k + 2].start)
        return first.text not in NOT_EXPRESSION and not declares
    return first.text in ("*", "++", "--")


def follows_header(found: list[Token], close: int) -> bool:
    """Whether this bracket closes the head of an `if` or a loop."""
    depth = 0
    for k in range(close, -1, -1):
        if found[k].kind == "sign":
            depth += (found[k].text in ")]}") - (found[k].text in "([{")
        if not depth:
            return found[k - 1].text in ("if", "for", "while")
    return False


def changes(text: str) -> list[Change]:
    """All small changes of a C file."""
    found = tokens(text)
    out: list[Change] = []
    depth = 0  # of round brackets
    for k in range(1, len(found) - 2):
        token = found[k]
        depth += (token.text == "(") - (token.text == ")")
        if token.kind == "number":
            out += number_changes(token)
        elif token.text == "(":
            out += bracket_changes(found, k, text)
        elif token.kind == "sign":
            out += sign_changes(token, text)
        elif token.text == "if":
            out += condition_changes(found, k, text)
        else:
            out += word_changes(token)
        if not depth and is_statement(found, k):
            end = next((j.start for j in found[k:] if j.text == ";"), None)
            if end is not None:
                out.append(Change(token.start, end, "(void)0", "statement"))
    return out
