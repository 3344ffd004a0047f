"""Which code asks a tracer before it acts? Every call, loop, operation and choice becomes a method of it."""

import ast
import sys
from typing import Any

from astraea_sglang.frontend.trace_symbol import Untraceable

TRACER = "__astraea__"  # the free variable with the tracer
KINDS = {"str", "int", "float", "bool", "list", "tuple", "dict", "set"}


def _tracer(
    method: str, at: ast.AST, *args: ast.expr, keywords: list[ast.keyword] | None = None, line: int | None = None
) -> ast.Call:
    fn = ast.Attribute(ast.Name(TRACER, ast.Load()), method, ast.Load())
    call = ast.Call(fn, list(args), keywords or [])
    line = line or getattr(at, "lineno", 1)
    for node in (call, fn, fn.value):
        ast.copy_location(node, at)
        node.lineno = node.end_lineno = line or 1
        node.end_col_offset = node.col_offset
    return call


def _starred(node: ast.expr) -> bool:
    return isinstance(node, ast.Starred)


def _of_kinds(part: ast.AST) -> bool:
    return not isinstance(part, ast.MatchClass) or (isinstance(part.cls, ast.Name) and part.cls.id in KINDS)


def _form(target: ast.expr | None) -> Any:
    """In which form does a target take apart? None if it does not."""
    if not isinstance(target, ast.Tuple | ast.List):
        return None
    form = tuple(map(_form, target.elts))
    if any(form) and any(map(_starred, target.elts)):
        raise Untraceable(f"line {target.lineno}: takes apart the rest of something, which is not traced")
    return form


def _const(value: Any) -> ast.Constant:
    return ast.Constant(value)


class Rewriter(ast.NodeTransformer):
    """A function with all that may run code of others, or depend on values, asked of a tracer. Raises Untraceable."""

    def __init__(self, free: tuple[str, ...]) -> None:
        self._free = free

    def _refuse(self, node: Any) -> Any:
        raise Untraceable(f"line {node.lineno}: {type(node).__name__} is not traced")

    visit_ClassDef = visit_AsyncFunctionDef = visit_Await = visit_AsyncFor = visit_AsyncWith = visit_TryStar = _refuse

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        if node.decorator_list:
            raise Untraceable(f"line {node.lineno}: a decorator is not traced")
        node.returns = None
        for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]:
            if arg:
                arg.annotation = None
        self.generic_visit(node)
        return node

    def visit_Import(self, node: ast.Import) -> ast.stmt:
        for name in node.names:
            if name.name not in sys.modules:
                raise Untraceable(f"line {node.lineno}: {name.name} is not imported yet")
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        found = sys.modules.get(node.module or "") if not node.level else None
        if found is None or not all(name.name in vars(found) for name in node.names):
            raise Untraceable(f"line {node.lineno}: what it imports from {node.module} is not there yet")
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        line = node.lineno
        if isinstance(node.func, ast.Attribute) and not any(map(_starred, node.args)):
            line = node.func.end_lineno or line  # as Python has it for a.b(), where that takes several lines
        self.generic_visit(node)
        for keyword in node.keywords:
            if keyword.arg is None:
                keyword.value = _tracer("mapping", node, keyword.value)
        return _tracer("call", node, node.func, *node.args, keywords=node.keywords, line=line)

    def visit_Starred(self, node: ast.Starred) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = _tracer("unpack", node, node.value)
        return node

    def _making(self, node: Any) -> ast.expr:
        self.generic_visit(node)
        if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            return node
        if isinstance(node, ast.Dict):
            node.values = [
                value if key else _tracer("mapping", node, value)
                for key, value in zip(node.keys, node.values, strict=True)
            ]
            node.keys = [key and _tracer("looked", node, key) for key in node.keys]
        elif isinstance(node, ast.DictComp):
            node.key = _tracer("looked", node, node.key)
        elif isinstance(node, ast.SetComp):
            node.elt = _tracer("looked", node, node.elt)
        elif isinstance(node, ast.Set):
            node.elts = [elt if _starred(elt) else _tracer("looked", node, elt) for elt in node.elts]
        return _tracer("made", node, node)

    visit_List = visit_Dict = visit_Set = visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _making

    def visit_YieldFrom(self, node: ast.YieldFrom) -> ast.expr:
        self.generic_visit(node)
        node.value = _tracer("unpack", node, node.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        self.generic_visit(node)
        for target in node.targets:
            if (form := _form(target)) is not None:
                node.value = _tracer("unpack_as", node, node.value, _const(form))
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        op = _const(type(node.op).__name__)
        value = self.visit(node.value)
        if isinstance(node.target, ast.Name):
            name = ast.Name(node.target.id, ast.Load())
            changed = _tracer("augment", node, op, name, value)
            return ast.copy_location(ast.Assign([node.target], changed), node)
        if isinstance(node.target, ast.Subscript) and not isinstance(node.target.slice, ast.Slice):
            container, key = self.visit(node.target.value), self.visit(node.target.slice)
            return ast.copy_location(ast.Expr(_tracer("augment_item", node, container, key, op, value)), node)
        return self._refuse(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        node.test = _tracer("truth", node, node.test)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        node.values = [_tracer("truth", node, value) for value in node.values[:-1]] + node.values[-1:]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        node.operand = _tracer("truth" if isinstance(node.op, ast.Not) else "looked", node, node.operand)
        return node

    def visit_With(self, node: ast.With) -> ast.stmt:
        self.generic_visit(node)
        for item in node.items:
            item.context_expr = _tracer("context", node, item.context_expr)
            if _form(item.optional_vars) is not None:
                self._refuse(node)
        return node

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
        return _tracer("binary", node, _const(type(node.op).__name__), node.left, node.right)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        names = {ast.Is: "same", ast.IsNot: "same", ast.In: "contains", ast.NotIn: "contains"}
        if len(node.ops) > 1:
            method = "plain" if any(type(op) in names for op in node.ops) else "looked"
            node.left = _tracer(method, node, node.left)
            node.comparators = [_tracer(method, node, part) for part in node.comparators]
            return node
        (op,), (right,) = node.ops, node.comparators
        if type(op) not in names:
            return _tracer("compare", node, _const(type(op).__name__), node.left, right)
        found = _tracer(names[type(op)], node, node.left, right)
        negated = ast.UnaryOp(ast.Not(), found) if isinstance(op, ast.NotIn | ast.IsNot) else found
        return ast.copy_location(negated, node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            if isinstance(node.slice, ast.Slice):
                part = node.slice
                bounds = [bound or ast.Constant(None) for bound in (part.lower, part.upper, part.step)]
                return _tracer("sliced", node, node.value, *bounds)
            return _tracer("item", node, node.value, node.slice)
        if isinstance(node.slice, ast.Slice):
            return self._refuse(node)
        node.value, node.slice = _tracer("own", node, node.value), _tracer("looked", node, node.slice)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            return _tracer("attr", node, node.value, _const(node.attr))
        node.value = _tracer("fixed", node, node.value)
        return node

    def visit_For(self, node: ast.For) -> ast.stmt:
        self.generic_visit(node)
        node.iter = self._rounds(node)
        node.body.insert(0, self._point(node.body[0]))
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        self.generic_visit(node)
        node.iter = self._rounds(node)
        node.ifs = [_tracer("truth", test, test) for test in node.ifs]
        return node

    def _rounds(self, node: ast.For | ast.comprehension) -> ast.expr:
        form = _form(node.target)
        if form is None:
            return _tracer("loop", node.iter, node.iter)
        return _tracer("rows", node.iter, node.iter, _const(form))

    def visit_While(self, node: ast.While) -> ast.stmt:
        self.generic_visit(node)
        node.test = _tracer("again", node.test, node.test)
        node.body.insert(0, self._point(node.body[0]))
        around = ast.withitem(_tracer("looping", node), None)
        return ast.copy_location(ast.With([around], [node]), node)

    def visit_If(self, node: ast.If) -> list[ast.stmt]:
        self.generic_visit(node)
        node.test = _tracer("truth", node.test, node.test)
        return [self._point(node), node]

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        self.generic_visit(node)
        if node.exc is not None:
            node.exc = _tracer("raising", node, node.exc)
        if node.cause is not None:
            node.cause = _tracer("raising", node, node.cause)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        self.generic_visit(node)
        failed = ast.Raise(_tracer("raising", node, ast.Name("AssertionError", ast.Load())), None)
        return ast.copy_location(ast.If(ast.UnaryOp(ast.Not(), _tracer("truth", node, node.test)), [failed], []), node)

    def visit_Try(self, node: ast.Try) -> ast.stmt:
        self.generic_visit(node)
        if node.handlers:
            node.body = [ast.copy_location(ast.With([ast.withitem(_tracer("guarded", node), None)], node.body), node)]
            stops = ast.Attribute(ast.Name(TRACER, ast.Load()), "stops", ast.Load())
            node.handlers.insert(0, ast.copy_location(ast.ExceptHandler(stops, None, [ast.Raise()]), node))
        return node

    def visit_Match(self, node: ast.Match) -> ast.stmt:
        parts = [part for case in node.cases for part in ast.walk(case.pattern)]
        if any(isinstance(part, ast.Attribute) or not _of_kinds(part) for part in parts):
            return self._refuse(node)
        node.subject = self.visit(node.subject)
        for case in node.cases:
            case.guard = case.guard and _tracer("truth", case.guard, self.visit(case.guard))
            case.body = self._block(case.body)
        equal = (ast.MatchValue, ast.MatchOr, ast.MatchAs, ast.MatchSingleton)
        same = all(isinstance(part, equal) for part in parts if isinstance(part, ast.pattern))
        node.subject = _tracer("looked" if same else "plain", node, node.subject)
        return node

    def _block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        done = [self.visit(part) for part in body]
        return [one for part in done for one in (part if isinstance(part, list) else [part])]

    def visit_Global(self, node: ast.Global) -> ast.stmt:
        raise Untraceable(f"line {node.lineno}: a global variable is set")

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.stmt:
        if outside := set(node.names) & set(self._free):
            raise Untraceable(f"line {node.lineno}: {min(outside)!r} is set outside the program")
        return node

    def _point(self, at: ast.stmt) -> ast.stmt:
        return ast.copy_location(ast.Expr(_tracer("point", at)), at)
