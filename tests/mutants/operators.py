"""Mutants of a module: its source with one node changed, as a careless edit or a slip would.

Annotations, decorators, imports, strings and ``__all__`` are left alone, as a change there is no change of what is
computed, and so is `strict` of ``zip``, which only asserts.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import NamedTuple

OTHER_OPERATORS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
}
UNTOUCHED_FIELDS = {"annotation", "returns", "decorator_list", "bases", "ctx"}
# Characters of a statement that is shown whole, and of what is shown on both sides of a change in a longer one.
LONG, AROUND = 110, 40
DELETED = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Delete)


class Mutant(NamedTuple):
    """One change. `function`, `was`, `now` and `nth` name it, whatever the lines above it become.

    `nth` counts changes of a function that read the same, from 1.
    """

    number: int
    line: int
    function: str
    was: str
    now: str
    nth: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.function, self.was, self.now, self.nth


class _Site(NamedTuple):
    holder: ast.AST
    field: str
    index: int | None
    new: ast.AST
    statement: ast.stmt
    function: str


def mutants(source: str) -> list[Mutant]:
    """All mutants of a source, numbered from 1 in the order of its lines."""
    found: list[Mutant] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for site in _module(ast.parse(source)):
        old = _put(site, site.new)
        now = _shown(site, site.new)
        _put(site, old)
        name = (site.function, *_short(_shown(site, old), now))
        seen[name] += 1
        line = getattr(old, "lineno", site.statement.lineno)
        found.append(Mutant(len(found) + 1, line, *name, seen[name]))
    return found


def mutated(source: str, number: int) -> str:
    """The source of a mutant."""
    tree = ast.parse(source)
    site = next(islice(_module(tree), number - 1, None))
    _put(site, site.new)
    return ast.unparse(tree)


def sample(found: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` of the mutants, in their order. An edit elsewhere in the module leaves the others in the sample."""

    def draw(mutant: Mutant) -> bytes:
        return hashlib.sha256(repr((seed, mutant.key)).encode()).digest()

    return sorted(sorted(found, key=draw)[:count])


def _put(site: _Site, node: ast.AST) -> ast.AST:
    value = getattr(site.holder, site.field)
    if site.index is None:
        setattr(site.holder, site.field, node)
        return value
    old = value[site.index]
    value[site.index] = node
    return old


def _shown(site: _Site, node: ast.AST) -> str:
    """The changed statement on one line; only the head of one that has a body, and only the default of an argument."""
    if isinstance(site.statement, (ast.FunctionDef, ast.ClassDef)):
        return _default(site, node)
    if isinstance(node, ast.stmt) and site.new is node:
        return ast.unparse(node).splitlines()[0]
    return ast.unparse(site.statement).splitlines()[0]


def _short(was: str, now: str) -> tuple[str, str]:
    """Both without what they have in common, but for some of it around the change, if they are long."""
    if len(was) <= LONG:
        return was, now
    start = max(0, _same(was, now) - AROUND)
    end = max(0, _same(was[:start:-1], now[:start:-1]) - AROUND)

    def cut(text: str) -> str:
        middle = text[start : len(text) - end]
        return f"{'...' if start else ''}{middle}{'...' if end else ''}" if text != "pass" else text

    return cut(was), cut(now)


def _same(a: str, b: str) -> int:
    """How many characters at the start of both are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _default(site: _Site, node: ast.AST) -> str:
    arguments = site.statement.args
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [
        *zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    for argument, value in pairs:
        if value is not None and any(n is node or n is site.holder for n in ast.walk(value)):
            return f"{argument.arg}={ast.unparse(value)}"
    raise AssertionError("a changed default belongs to an argument")


def _module(tree: ast.Module) -> Iterator[_Site]:
    for k, statement in enumerate(tree.body):
        yield from _statement(tree, "body", k, statement, "")


def _statement(holder: ast.AST, field: str, index: int, statement: ast.stmt, function: str) -> Iterator[_Site]:
    """Changes of a statement as a whole, of the expressions in it, and of the statements in it."""
    if _is_fixed(statement):
        return
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        inner = f"{function}.{statement.name}" if function else statement.name
    else:
        inner = function
        for new in _instead(statement):
            yield _Site(holder, field, index, new, statement, function)
    yield from _parts(statement, statement, inner)


def _parts(node: ast.AST, statement: ast.stmt, function: str) -> Iterator[_Site]:
    for name, value in ast.iter_fields(node):
        if name in UNTOUCHED_FIELDS:
            continue
        for k, child in enumerate(value if isinstance(value, list) else [value]):
            at = k if isinstance(value, list) else None
            if isinstance(child, ast.stmt):
                yield from _statement(node, name, k, child, function)
            elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
                yield from _parts(child, statement, function)
            elif isinstance(child, ast.AST):
                yield from _expression(node, name, at, child, statement, function)


def _is_fixed(statement: ast.stmt) -> bool:
    """Imports, docstrings, names for annotations, ``__all__``, and what runs for annotations only."""
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()) | ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case ast.AnnAssign(annotation=ast.Name("TypeAlias")) | ast.AnnAssign(value=None):
            return True
        case ast.Assign(targets=[ast.Name("__all__")]):
            return True
    return False


def _instead(statement: ast.stmt) -> Iterator[ast.stmt]:
    match statement:
        case ast.Raise() | ast.Assert():
            yield ast.Pass()
        case ast.Return(value) if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case _ if isinstance(statement, DELETED):
            yield ast.Pass()
    if isinstance(statement, ast.AugAssign):
        for other in OTHER_OPERATORS.get(type(statement.op), ()):
            yield ast.AugAssign(statement.target, other(), statement.value)


def _expression(
    holder: ast.AST, field: str, index: int | None, node: ast.AST, statement: ast.stmt, function: str
) -> Iterator[_Site]:
    if isinstance(node, (ast.JoinedStr, ast.operator, ast.cmpop, ast.boolop, ast.unaryop, ast.expr_context)):
        return
    if isinstance(holder, ast.Call) and field == "keywords" and _is_zip(holder.func):
        return
    if not (isinstance(holder, ast.Call) and field == "func") or isinstance(node, ast.Call):
        for new in _changed(holder, field, node):
            yield _Site(holder, field, index, new, statement, function)
    yield from _parts(node, statement, function)


def _changed(holder: ast.AST, field: str, node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of an expression: each differs from it by one operator, number, negation or keyword."""
    match node:
        case ast.Compare(left, operators, right):
            for k, operator in enumerate(operators):
                for other in OTHER_OPERATORS.get(type(operator), ()):
                    yield ast.Compare(left, [*operators[:k], other(), *operators[k + 1 :]], right)
        case ast.BinOp(left, operator, right):
            for other in OTHER_OPERATORS.get(type(operator), ()):
                yield ast.BinOp(left, other(), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Call(function, arguments, keywords) if not _is_zip(function):
            for k, keyword in enumerate(keywords):
                if keyword.arg is not None:
                    yield ast.Call(function, arguments, keywords[:k] + keywords[k + 1 :])
    is_condition = field == "test" or (isinstance(holder, ast.comprehension) and field == "ifs")
    if is_condition and not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
        yield ast.UnaryOp(ast.Not(), node)
    is_index = (isinstance(holder, ast.Subscript) and field == "slice") or isinstance(holder, ast.Slice)
    if is_index and not isinstance(node, (ast.Slice, ast.Tuple, ast.Constant)):
        yield ast.BinOp(node, ast.Add(), ast.Constant(1))


def _is_zip(function: ast.AST) -> bool:
    return isinstance(function, ast.Name) and function.id == "zip"
