"""The house: layers and maps, public names, private names, documentation, length, stubs."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import lariat
import pytest
from lariat import (
    _attention,
    _attention_plan,
    _cache,
    _experts,
    _kernels,
    _lock,
    _masks,
    _program,
    _quantize,
    _routing,
    _rows,
    _strings,
    _tiles,
)

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "engine"
COMPILED = (
    *(_attention, _attention_plan, _cache, _experts, _kernels, _lock, _masks, _program),
    *(_quantize, _routing, _rows, _strings, _tiles),
)

# From the ground up. A folder, or a module that stands in none, imports from rows before its own
# only. Modules of one folder may import each other, but never in a circle.
LEVELS = (
    ("_lock", "_masks", "_program", "_quantize", "_strings"),
    ("demo", "errors", "os_memory", "processor"),
    ("_kernels", "checks"),
    ("_cache", "_machine", "_routing", "_rows", "_tiles"),
    ("_attention_plan", "_experts", "config"),
    ("_attention",),
    ("formats",),
    ("tokenizers", "cache", "hub", "speculative"),
    ("architectures", "structured"),
    ("runtime",),
    ("reuse",),
    ("llm",),
    ("async_llm",),
    ("chat",),
    ("tools", "measure", "protocol"),
    ("server", "jobs"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# They stand beside the way of a token: the cache must not know files, nor files the cache.
STRANGERS = (("cache", "formats"), ("tokenizers", "cache"))
SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def name_of(path: Path) -> str:
    """cli/generate.py -> cli.generate, cli/__init__.py -> cli, config.py -> config"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, for types too, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {module for name in names if (module := module_of(name))}
    return found


def module_of(dotted: str) -> str:
    """The module that a dotted name lies in, without the package's name; "" for others' modules."""
    top, *parts = dotted.split(".")
    if top != "lariat":
        return ""
    for n in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:n])
        if path.is_dir() or any(path.with_suffix(end).exists() for end in (".py", ".pyx")):
            return ".".join(parts[:n])
    return "__init__"


IMPORTS = {name_of(path): imports_of(path) for path in SOURCES}


def test_every_module_has_its_place():
    present = {name.partition(".")[0] for name in IMPORTS} | {p.stem for p in PACKAGE.glob("*.pyx")}
    assert present - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("module", sorted(set(IMPORTS) - {"__init__"}))
def test_imports_point_downwards(module):
    folder = module.partition(".")[0]
    for other in IMPORTS[module]:
        below = other.partition(".")[0]
        if below == folder:
            continue
        assert below in LEVEL, f"{module} imports {other}, which is above everything"
        assert LEVEL[below] < LEVEL[folder], f"{module} imports {other}, which is not below it"
        assert (folder, below) not in STRANGERS, f"{module} imports {other}, which stands beside it"


def test_the_package_itself_imports_for_types_alone():
    """So that `lariat --help` is quick."""
    code = "import sys, lariat; print(sorted(m for m in sys.modules if m.startswith('lariat.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_no_imports_go_round_in_a_circle():
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(IMPORTS.get(module, ())):
                if other != module:
                    follow(other, (*way, module))
            done.add(module)

    for module in sorted(set(IMPORTS) - {"__init__"}):
        follow(module, ())


@pytest.mark.parametrize(
    "module",
    [
        "runtime.scheduler",
        "cache.prefix_cache",
        "runtime.request",
        "cache.blocks",
        "runtime.sampler",
    ],
)
def test_modules_that_decide_know_nothing_of_kernels_and_model(module):
    """Not through others either."""
    seen, todo = set(), [module]
    while todo:
        for other in IMPORTS.get(todo.pop(), set()) - seen:
            seen.add(other)
            todo.append(other)
    assert not {name for name in seen if name.startswith("_")}
    assert not seen & {"architectures.model", "cache.kv_cache", "formats.gguf", "llm", "__init__"}


@pytest.mark.parametrize(
    ("user", "used"),
    [
        ("llm", "runtime.runner"),
        ("runtime.runner", "runtime.scheduler"),
        ("runtime.runner", "architectures.model"),
        ("architectures.model", "cache.kv_cache"),
        ("cache.kv_cache", "_attention"),
    ],
)
def test_the_imports_of_the_design_are_found_by_this_test(user, used):
    assert used in IMPORTS[user]


# ---- maps ----


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_map_of_a_folder_names_every_module(folder):
    """The docstring of its `__init__`, in about ten lines."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules <= set(re.findall(r"[a-z_0-9]+", text)), modules
    assert len(text.splitlines()) <= 30


def test_the_map_of_the_package_names_every_folder_and_module():
    text = lariat.__doc__
    assert text
    assert set(LEVEL) - {"__main__"} <= set(re.findall(r"[a-z_0-9]+", text))


# ---- private names ----

# Underscored, but not private.
_PUBLIC_ALL_THE_SAME = {"_replace", "_asdict", "_fields", "_make"}  # of named tuples


def private_accesses(source: str) -> list[str]:
    """`x._name` where x is neither `self` nor `cls`, and no object of the class at hand.

    A class may look into its own kind: `other._name` is allowed where the class that the code
    stands in has set or defined `_name` itself. Modules of the standard library are not asked.
    """
    tree = ast.parse(source)
    modules = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and (getattr(node, "module", None) or node.names[0].name).partition(".")[0]
        in sys.stdlib_module_names
        for alias in node.names
    }
    found: list[str] = []

    def names_of(class_node: ast.ClassDef) -> set[str]:
        own = {n.name for n in ast.walk(class_node) if isinstance(n, ast.FunctionDef)}
        for node in ast.walk(class_node):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
                own.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
        return own

    def walk(node: ast.AST, own: set[str]) -> None:
        if isinstance(node, ast.ClassDef):
            own = names_of(node)
        if isinstance(node, ast.Attribute):
            name, owner = node.attr, ast.unparse(node.value)
            is_private = name.startswith("_") and not name.endswith("__")
            if (
                is_private
                and name not in _PUBLIC_ALL_THE_SAME
                and owner not in ("self", "cls")
                and name not in own
                and owner not in modules
            ):
                found.append(f"line {node.lineno}: {owner}.{name}")
        for child in ast.iter_child_nodes(node):
            walk(child, own)

    walk(tree, set())
    return found


@pytest.mark.parametrize(
    "path",
    [*SOURCES, *sorted((ROOT / "bench").rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nobody_touches_the_private_names_of_another_object(path):
    assert not private_accesses(path.read_text())


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.pyx")), ids=lambda path: path.name)
def test_compiled_modules_touch_no_private_names_either(path):
    pattern = re.compile(r"\b(?!self\b|cls\b)[a-zA-Z]\w*(?:\(\)|\])?\._[a-z]\w*")
    code = re.sub(r'"""(.|\n)*?"""|#.*', "", path.read_text())
    assert not [m[0] for m in pattern.finditer(code) if not m[0].startswith("lariat.")]


def test_this_test_sees_private_accesses():
    assert private_accesses("def f(llm):\n    return llm._cache") == ["line 2: llm._cache"]
    assert private_accesses("class A:\n    def f(self, b):\n        return b._x.y") == [
        "line 3: b._x"
    ]
    own = "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, b):\n"
    assert not private_accesses(own + "        return b._x + self._x")
    assert not private_accesses("import sys\nsys._getframe()")


# ---- public names ----


def test_the_public_names():
    asked_for = {"LLM", "AsyncLLM", "Grammar", "SamplingParams", "Tokenizer"}
    asked_for |= {"GGUFFile", "GGUFError"}
    errors = {"LariatError", "ModelError", "ChatError", "ContextError", "HubError"}
    others = {"BatchWorker", "Chat", "ChunkLibrary"}
    others |= {"Completion", "Context", "DEMO_MODEL", "Recompute"}
    others |= {"Delta", "RopeConfig", "Score", "TokenLogprob"}
    assert set(lariat.__all__) == asked_for | errors | others
    for name in set(lariat.__all__) - {"DEMO_MODEL"}:
        assert inspect.isclass(getattr(lariat, name))


def test_nothing_else_looks_public():
    names = {name for name in vars(lariat) if not name.startswith("_")} | set(lariat.__all__)
    modules = {name for name in names if isinstance(getattr(lariat, name), types.ModuleType)}
    means = {"annotations", "TYPE_CHECKING", "import_module"}
    assert names - modules - means == set(lariat.__all__)


def test_errors_have_one_root_and_are_value_errors():
    for name in ("GGUFError", "ModelError", "ChatError", "ContextError"):
        assert issubclass(getattr(lariat, name), (lariat.LariatError, ValueError))
        assert issubclass(getattr(lariat, name), ValueError)
    assert not issubclass(lariat.GGUFError, lariat.ModelError)


# ---- documentation and size ----


def public_definitions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and public methods of public classes."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            overload = any(ast.unparse(d).endswith("overload") for d in node.decorator_list)
            if node.name.startswith("_") or overload:
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(ast.parse(path.read_text()).body, "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_whatever_is_public_is_documented(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
    bare = [name for name, node in public_definitions(path) if not ast.get_docstring(node)]
    assert not bare


def test_this_test_sees_definitions():
    names = [name for name, _ in public_definitions(PACKAGE / "llm.py")]
    assert {"LLM", "LLM.stream", "LLM.generate", "LLM.close"} <= set(names)


@pytest.mark.parametrize("compiled", COMPILED, ids=lambda module: module.__name__)
def test_kernels_are_documented(compiled):
    for name in sorted(public_names(compiled)):
        assert getattr(compiled, name).__doc__, name


MAX_LINES = 600


@pytest.mark.parametrize("pattern", ["*.py", "*.pyi", "*.pyx", "*.pxd", "*.h", "*.c"])
def test_no_file_is_too_long_to_be_read(pattern):
    for path in PACKAGE.rglob(pattern):
        n_lines = len(path.read_text().splitlines())
        assert n_lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {n_lines} lines"


# ---- stubs of the compiled modules ----


def public_names(compiled: types.ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(compiled).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


def stub(compiled: types.ModuleType) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    tree = ast.parse((PACKAGE / f"{compiled.__name__.rpartition('.')[2]}.pyi").read_text())
    nodes = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: node for node in nodes if not node.name.startswith("_")}


@pytest.mark.parametrize("compiled", COMPILED, ids=lambda module: module.__name__)
def test_the_stub_names_what_the_compiled_module_has(compiled):
    assert set(stub(compiled)) == public_names(compiled)


@pytest.mark.parametrize(
    ("compiled", "name"), [(module, name) for module in COMPILED for name in sorted(stub(module))]
)
def test_the_stub_has_the_parameters_and_attributes_of_the_compiled_module(compiled, name):
    node, real = stub(compiled)[name], getattr(compiled, name)
    if isinstance(node, ast.ClassDef):
        assert inspect.isclass(real)
        attributes = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
        methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        public = {attribute for attribute in vars(real) if not attribute.startswith("_")}
        assert public == {n for n in attributes | methods if not n.startswith("_")}
    else:
        assert not inspect.isclass(real)
        parameters = inspect.signature(real).parameters
        named = node.args.args + [node.args.vararg] * bool(node.args.vararg) + node.args.kwonlyargs
        assert [argument.arg for argument in named] == list(parameters)
        n_defaults = sum(p.default is not p.empty for p in parameters.values())
        assert len(node.args.defaults + node.args.kw_defaults) == n_defaults
