"""How is a function made to ask before it acts? From its source, rewritten and compiled.

The lines stay what they were. Every function so made takes the tracer from a cell named TRACER.
"""

import ast
import inspect
from types import CellType, CodeType, FunctionType

from astraea_sglang.frontend.trace_rewrite import TRACER, Rewriter
from astraea_sglang.frontend.trace_symbol import Untraceable


def rewritten(fn: FunctionType) -> CodeType:
    """The code of `fn`, with a free variable TRACER. Raises OSError without source, Untraceable if it does not do."""
    if fn.__name__ == "<lambda>" or hasattr(fn, "__wrapped__"):
        raise OSError("the source of a lambda, or of what is wrapped, cannot be told from what is around it")
    source = inspect.getsource(fn)
    indented = source[0].isspace()
    tree = ast.parse("if True:\n" + source if indented else source)
    node = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    if not isinstance(node, ast.FunctionDef):
        raise Untraceable(f"{fn.__name__} is not a plain function")
    ast.increment_lineno(node, fn.__code__.co_firstlineno - 1 - indented)
    node.decorator_list = []
    node = Rewriter(fn.__code__.co_freevars).visit(node)
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
