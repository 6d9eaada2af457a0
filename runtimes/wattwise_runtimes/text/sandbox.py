"""A jinja2 environment for chat templates from strangers: bounded in time, memory and output.

jinja2's immutable sandbox keeps a template away from Python's insides, but not from `'a' * 10**9`, from loops
that never end in practice, or from lists that hold each other a million times over. Three rules close that:

- every statement and loop turn first looks at the clock and at the sum of what has been built so far;
- every value that grows (operators, `~`, slices, list and dict displays, filters, calls) is weighed, nested
  containers with all they hold, and refused beyond a limit;
- calls into C that could build something large from small parts are estimated before they run.

The rendering rules (blocks trimmed, loop controls, `generation` blocks, plain JSON, ...) are those under which
chat templates are written. Not here: messages and variables, see `text.template`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.utils import Namespace

from wattwise_runtimes.text.template_meter import CONTAINERS, LimitError, Meter, weight_of

MAX_INT_ARGUMENT = 1_000_000
MAX_INT_BITS = 4096
MAX_TOJSON_EXTRA = 100  # spaces of indentation, characters of separators
_REMOVED_FILTERS = ("pprint", "random", "urlize", "wordwrap", "xmlattr")
_WIDE_FORMAT = re.compile(r"\d{5,}|\*")
_NESTED_FORMAT = re.compile(r"\{[^{}]*\{")


class SafeNamespace(Namespace):
    """jinja2's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateRuntimeError(f"a namespace attribute may not be called {name!r}")


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}`: marks what the model wrote; rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class GuardedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment. `meter.start` must be called before compiling and before rendering."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols],
            finalize=self._finalize,
        )
        self.meter = Meter()
        self.concat = self._concat  # type: ignore[method-assign]
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = self._tojson
        self.filters = {name: self._guard_filter(name, f) for name, f in self.filters.items()}
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise, strftime_now=strftime_now, namespace=SafeNamespace, dict=_TemplateDict()
        )

    # --- compiling: put the guards into the syntax tree

    def guarded_template(self, source: str) -> jinja2.Template:
        """Compile with a tick before every statement and a weight on every display and concatenation."""
        tree = self.parse(source)
        for node in list(tree.find_all((nodes.Concat, nodes.List, nodes.Tuple, nodes.Dict, nodes.Getitem))):
            if not isinstance(node, nodes.Getitem) or isinstance(node.arg, nodes.Slice):
                self._guard_expression(node)
        for node in [tree, *tree.find_all(nodes.Stmt)]:
            for field in ("body", "else_"):
                statements = getattr(node, field, None)
                if isinstance(statements, list) and not isinstance(node, nodes.Output):
                    setattr(node, field, [part for s in statements for part in (self._tick_node(s.lineno), s)])
        code = self.compile(tree)
        return jinja2.Template.from_code(self, code, self.make_globals(None), None)

    def _tick_node(self, line: int) -> nodes.Node:
        call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        return nodes.ExprStmt(call).set_lineno(line).set_environment(self)

    def _guard_expression(self, node: Any) -> None:
        """Turn `node` in place into a call of `weigh` or `join_text` with the same parts."""
        if getattr(node, "ctx", "load") != "load":
            return  # a tuple on the left of an assignment
        kind: Any = type(node)
        attributes: dict[str, Any] = vars(node)
        inner = kind.__new__(kind)
        vars(inner).update(attributes)
        if isinstance(node, nodes.Concat):
            name, arguments = "join_text", list(node.nodes)
        else:
            name, arguments = "weigh", [inner]
        target = nodes.EnvironmentAttribute(name).set_lineno(node.lineno).set_environment(self)
        node.__class__ = nodes.Call  # pyright: ignore[reportAttributeAccessIssue]
        for field in ("nodes", "items", "arg", "ctx"):
            attributes.pop(field, None)
        attributes.update(node=target, args=arguments, kwargs=[], dyn_args=None, dyn_kwargs=None)

    def tick(self) -> str:
        """Called before every statement."""
        return self.meter.tick()

    def weigh(self, value: Any) -> Any:
        """Called on every list, tuple and dict display."""
        return self.meter.weigh(value)

    def join_text(self, *values: Any) -> str:
        """The `~` operator."""
        parts = [self._text(value) for value in values]
        self.meter.check_size(sum(map(len, parts)))
        return self.meter.weigh("".join(parts))

    def _text(self, value: Any) -> str:
        return value if isinstance(value, str) else str(self.meter.check(value))

    def _finalize(self, value: Any) -> Any:
        return self.meter.check(value)

    def _concat(self, parts: Iterable[str]) -> str:
        parts = list(parts)
        self.meter.check_size(sum(map(len, parts)))
        return "".join(parts)

    # --- running: guards around operators, calls and filters

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Operators, with an estimate of the result first."""
        self.meter.tick()
        if isinstance(left, int) and isinstance(right, int):
            _check_int(operator, left, right)
        elif operator == "*":
            count, sequence = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(count, int) and isinstance(sequence, (str, list, tuple)):
                self.meter.check_size(count * weight_of(sequence, self.meter))
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, type(left)):
            self.meter.check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            self.meter.check(right)
            self._check_format(left, right if isinstance(right, tuple) else (right,))
        return self.meter.weigh(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls: methods of text and everything else a template can reach."""
        meter = __self.meter
        if __obj in (__self.tick, __self.weigh, __self.join_text):
            return __obj(*args)
        meter.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes)):
            args = __self._checked_method(owner, __obj.__name__, args, kwargs)
            meter.add(len(owner))  # the parts that `split` and its kind return
        else:
            __self._check_arguments(args, kwargs)
        return meter.weigh(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format` with an estimate first."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        @functools.wraps(wrapped)
        def guarded(*args: Any, **kwargs: Any) -> str:
            if _NESTED_FORMAT.search(text):
                raise LimitError("a format with a format inside")
            self._check_format(text, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return guarded

    def _check_arguments(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_INT_ARGUMENT:
                raise LimitError(f"the number {str(value)[:20]} as an argument")
            if isinstance(value, CONTAINERS):
                self.meter.check(value)

    def _check_format(self, text: str, values: Iterable[Any]) -> None:
        if _WIDE_FORMAT.search(text):
            raise LimitError("a format with a width of more than four digits")
        longest = max((len(self._text(v)) for v in values if not isinstance(v, (int, float))), default=0)
        places = text.count("{") + text.count("%")
        self.meter.check_size(len(text) + places * (longest + 10_000))

    def _checked_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self._check_arguments(args, kwargs)
        if name in ("translate", "format_map", "maketrans"):
            raise LimitError(f"the method {name}")
        if name == "join" and args:
            values = list(self._bounded(args[0]))
            size = sum(len(v) for v in values if isinstance(v, str)) + len(owner) * len(values)
            self.meter.check_size(size)
            return (values,)
        if name == "replace":
            old, new = (*args, *kwargs.values(), "", "")[:2]
            if isinstance(old, str) and isinstance(new, str):
                self.meter.check_size(len(owner) + (owner.count(old) if old else len(owner) + 1) * len(new))
        if name == "expandtabs":
            self.meter.check_size(len(owner) + owner.count("\t") * int(args[0] if args else 8))
        return args

    def _bounded(self, values: Iterable[Any]) -> Iterator[Any]:
        for count, value in enumerate(values):
            self.meter.tick()
            self.meter.check_size(count)
            yield value

    def _guard_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0
        estimate = _ESTIMATES.get(name)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            value, rest = args[skip], args[skip + 1 :]
            self._check_arguments((*rest, value) if not isinstance(value, int) else rest, kwargs)
            if estimate is not None:
                value = estimate(self, value, rest, kwargs)
            result = function(*args[:skip], value, *rest, **kwargs)
            if isinstance(result, Iterator):
                return self.meter.iterate(result)
            return self.meter.weigh(result)

        return guarded

    def _tojson(
        self, x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        extra = indent if isinstance(indent, int) else len(indent or "")
        if max(extra, *(len(s) for s in separators or ("",))) > MAX_TOJSON_EXTRA:
            raise LimitError("tojson with more than 100 characters of indentation or separators")
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _TemplateDict:
    """`dict` for templates: makes dicts and is not the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*args, **kwargs)


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _check_int(operator: str, left: int, right: int) -> None:
    bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 0)}
    if bits.get(operator, 0) > MAX_INT_BITS:
        raise LimitError(f"a number of about {bits[operator]} bits")


def _estimate_join(env: GuardedEnvironment, value: Any, rest: Any, kwargs: Any) -> Any:
    values = list(env._bounded(value))
    between = rest[0] if rest else kwargs.get("d", "")
    sizes = sum(len(v) if isinstance(v, str) else 8 for v in values)
    env.meter.check_size(sizes + len(values) * len(str(between)))
    return values


def _estimate_replace(env: GuardedEnvironment, value: Any, rest: Any, kwargs: Any) -> Any:
    text = env._text(value)
    old, new = (*rest, *kwargs.values(), "", "")[:2]
    if isinstance(old, str) and isinstance(new, str):
        env.meter.check_size(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    return value


def _estimate_indent(env: GuardedEnvironment, value: Any, rest: Any, kwargs: Any) -> Any:
    width = rest[0] if rest else kwargs.get("width", 4)
    text = env._text(value)
    env.meter.check_size(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(str(width))))
    return value


def _estimate_format(env: GuardedEnvironment, value: Any, rest: Any, kwargs: Any) -> Any:
    env._check_format(env._text(value), (*rest, *kwargs.values()))
    return value


def _estimate_sum(env: GuardedEnvironment, value: Any, rest: Any, kwargs: Any) -> Any:
    start = rest[1] if len(rest) > 1 else kwargs.get("start", 0)
    if not isinstance(start, (int, float)):
        raise LimitError("sum of something other than numbers")
    return value


def _estimate_lazy(env: GuardedEnvironment, value: Any, rest: Any, kwargs: Any) -> Any:
    return value if isinstance(value, (str, *CONTAINERS)) or not isinstance(value, Iterable) else env._bounded(value)


_ESTIMATES: Mapping[str, Callable[[GuardedEnvironment, Any, Any, Any], Any]] = {
    "join": _estimate_join,
    "replace": _estimate_replace,
    "indent": _estimate_indent,
    "format": _estimate_format,
    "sum": _estimate_sum,
    "list": _estimate_lazy,
    "sort": _estimate_lazy,
    "batch": _estimate_lazy,
    "slice": _estimate_lazy,
}
