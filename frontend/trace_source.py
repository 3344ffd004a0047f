"""How is a function made to ask before it acts? Its source, with calls, loops and texts that go through a tracer.

The lines stay what they were. Every function so made takes the tracer from a cell named TRACER.
"""

import ast
import inspect
from types import CellType, CodeType, FunctionType
from typing import Any

from astraea_sglang.frontend.trace_symbol import Untraceable

TRACER = "__astraea__"


def rewritten(fn: FunctionType) -> CodeType:
    """The code of `fn`, with a free variable TRACER. Raises OSError without source, Untraceable if it does not do."""
    if fn.__name__ == "<lambda>":
        raise OSError("the source of a lambda cannot be told from what is around it")
    source = inspect.getsource(fn)
    indented = source[0].isspace()
    tree = ast.parse("if True:\n" + source if indented else source)
    node = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    if not isinstance(node, ast.FunctionDef):
        raise Untraceable(f"{fn.__name__} is not a plain function")
    ast.increment_lineno(node, fn.__code__.co_firstlineno - 1 - indented)
    node.decorator_list = []
    node = _Rewriter(fn.__code__.co_freevars).visit(node)
    names = [TRACER, *fn.__code__.co_freevars]
    parameters = ast.arguments(
        posonlyargs=[], args=[ast.arg(name) for name in names], kwonlyargs=[], kw_defaults=[], defaults=[]
    )
    factory = ast.FunctionDef(name="factory", args=parameters, body=[node], decorator_list=[])
    module = ast.fix_missing_locations(ast.Module(body=[factory], type_ignores=[]))
    code = compile(module, fn.__code__.co_filename, "exec", dont_inherit=True)
    return _inner(_inner(code, "factory"), fn.__name__)


class Sources:
    """Which functions are rewritten already? `codes` holds theirs, that of the functions they define included."""

    def __init__(self) -> None:
        self.codes: set[CodeType] = set()
        self._rewritten: dict[CodeType, CodeType] = {}

    def made(self, fn: FunctionType, tracer: object) -> FunctionType:
        """The function that asks this tracer. Raises OSError without source, Untraceable if it cannot be made."""
        if fn.__code__ not in self._rewritten:
            self._rewritten[fn.__code__] = rewritten(fn)
            self.codes |= _codes_in(self._rewritten[fn.__code__])
        code = self._rewritten[fn.__code__]
        cells = {**dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)), TRACER: CellType(tracer)}
        closure = tuple(cells[name] for name in code.co_freevars)
        made = FunctionType(code, fn.__globals__, fn.__name__, fn.__defaults__, closure)
        made.__kwdefaults__ = fn.__kwdefaults__
        return made


def _codes_in(code: CodeType) -> set[CodeType]:
    inner = [_codes_in(const) for const in code.co_consts if isinstance(const, CodeType)]
    return {code}.union(*inner)


def _inner(code: CodeType, name: str) -> CodeType:
    return next(const for const in code.co_consts if isinstance(const, CodeType) and const.co_name == name)


def _tracer(method: str, at: ast.AST, *args: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
    fn = ast.Attribute(ast.Name(TRACER, ast.Load()), method, ast.Load())
    call = ast.Call(fn, list(args), keywords or [])
    line = getattr(at, "lineno", 1)
    if isinstance(at, ast.Call) and isinstance(at.func, ast.Attribute) and not any(map(_starred, at.args)):
        line = at.func.end_lineno  # as Python has it for a.b(), where that takes several lines
    for node in (call, fn, fn.value):
        ast.copy_location(node, at)
        node.lineno = node.end_lineno = line or 1
        node.end_col_offset = node.col_offset
    return call


def _starred(node: ast.expr) -> bool:
    return isinstance(node, ast.Starred)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, free: tuple[str, ...]) -> None:
        self._free = free

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return node
        return _tracer("call", node, node.func, *node.args, keywords=node.keywords)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        self.generic_visit(node)
        parts: list[ast.expr] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                spec = part.format_spec or ast.Constant("")
                part = ast.Tuple([part.value, ast.Constant(part.conversion), spec], ast.Load())
            parts.append(part)
        return _tracer("text", node, *(ast.copy_location(part, node) for part in parts))

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return _tracer("mod", node, node.left, node.right) if isinstance(node.op, ast.Mod) else node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        identity = (ast.Is, ast.IsNot)
        if len(node.ops) > 1:
            if any(isinstance(op, identity) for op in node.ops):
                node.left = _tracer("plain", node, node.left)
                node.comparators = [_tracer("plain", node, part) for part in node.comparators]
            return node
        (op,), (right,) = node.ops, node.comparators
        if not isinstance(op, (ast.In, ast.NotIn, *identity)):
            return node
        found = _tracer("same" if isinstance(op, identity) else "contains", node, node.left, right)
        negated = ast.UnaryOp(ast.Not(), found) if isinstance(op, ast.NotIn | ast.IsNot) else found
        return ast.copy_location(negated, node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            node.value = _tracer("own", node, node.value)
            return node
        if any(isinstance(part, ast.Slice | ast.Starred) for part in ast.walk(node.slice)):
            return node
        return _tracer("item", node, node.value, node.slice)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            node.value = _tracer("own", node, node.value)
        return node

    def visit_For(self, node: ast.For) -> ast.stmt:
        self.generic_visit(node)
        node.iter = _tracer("loop", node.iter, node.iter)
        node.body.insert(0, self._point(node.body[0]))
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        self.generic_visit(node)
        node.iter = _tracer("loop", node.iter, node.iter)
        return node

    def visit_While(self, node: ast.While) -> ast.stmt:
        self.generic_visit(node)
        node.test = _tracer("again", node.test, node.test)
        node.body.insert(0, self._point(node.body[0]))
        around = ast.withitem(_tracer("looping", node), None)
        return ast.copy_location(ast.With([around], [node]), node)

    def visit_If(self, node: ast.If) -> list[ast.stmt]:
        self.generic_visit(node)
        return [self._point(node), node]

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        self.generic_visit(node)
        if node.exc is not None:
            node.exc = _tracer("raising", node, node.exc)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        self.generic_visit(node)
        failed = ast.Raise(_tracer("raising", node, ast.Name("AssertionError", ast.Load())), None)
        return ast.copy_location(ast.If(ast.UnaryOp(ast.Not(), node.test), [failed], []), node)

    def visit_Try(self, node: ast.Try) -> ast.stmt:
        self.generic_visit(node)
        if node.handlers:
            node.body = [ast.copy_location(ast.With([ast.withitem(_tracer("guarded", node), None)], node.body), node)]
        return node

    def visit_TryStar(self, node: Any) -> ast.stmt:
        raise Untraceable(f"line {node.lineno}: except* is not traced")

    def visit_Match(self, node: ast.Match) -> ast.stmt:
        self.generic_visit(node)
        equal = (ast.MatchValue, ast.MatchOr, ast.MatchAs)
        patterns = [part for case in node.cases for part in ast.walk(case.pattern) if isinstance(part, ast.pattern)]
        if not all(isinstance(part, equal) for part in patterns):
            node.subject = _tracer("plain", node, node.subject)
        return node

    def visit_Global(self, node: ast.Global) -> ast.stmt:
        raise Untraceable(f"line {node.lineno}: a global variable is set")

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.stmt:
        if outside := set(node.names) & set(self._free):
            raise Untraceable(f"line {node.lineno}: {min(outside)!r} is set outside the program")
        return node

    def _point(self, at: ast.stmt) -> ast.stmt:
        return ast.copy_location(ast.Expr(_tracer("point", at)), at)
