"""The shape of the code itself: who imports whom, what is public, what is documented, how long."""

from __future__ import annotations

import ast
import inspect
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
    _kernels,
    _program,
    _quantize,
    _strings,
)

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "engine"
COMPILED = (_attention, _attention_plan, _cache, _kernels, _program, _quantize, _strings)

# The house of the design, from the ground up. A module imports only from levels below its own;
# within cli/ all is one level. A new module has to find its place here.
LEVELS = (
    (
        "_program",
        "_quantize",
        "_strings",
        "architecture",
        "demo",
        "errors",
        "files",
        "memory",
        "template_worker",
        "threads",
    ),
    ("_kernels",),
    ("_cache", "_machine"),
    ("_attention_plan",),
    ("_attention",),
    ("config", "quants", "machine", "segments", "storage"),
    ("gguf", "rope", "batch", "sampler", "sequence", "cache_memory"),
    (
        "chat_template",
        "check_tensors",
        "context_file",
        "file_sampling",
        "gguf_parts",
        "vocabulary",
        "weights",
        "prefixes",
    ),
    ("chunk_file",),
    ("kv_cache",),
    ("context", "scheduler", "tokenizer_spm", "tokenizer_bpe", "model", "cases", "quantize"),
    ("tokenizer",),
    ("llm", "benchmark", "library", "plots", "prompt_cache"),
    ("chat", "perplexity"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """cli/generate.py -> cli, gguf.py -> gguf"""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports when it runs, wherever the statement stands."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []  # types only; gives no order of loading
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "lariat":
                part = rest.partition(".")[0]
                found.add(part if part in LEVEL else "__init__")
    return found


def test_every_module_has_its_place():
    present = {module_of(path) for path in SOURCES} | {p.stem for p in PACKAGE.glob("*.pyx")}
    assert present - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    module = module_of(path)
    if module == "__init__":
        return
    for other in imports_of(path):
        assert other in LEVEL, f"{path.name} imports {other}, which is above everything"
        if other == module == "cli":
            continue
        assert LEVEL[other] < LEVEL[module], f"{path.name} imports {other}, which is not below it"


@pytest.mark.parametrize(
    "module", ["scheduler", "prefixes", "sequence", "segments", "batch", "sampler"]
)
def test_what_decides_knows_nothing_of_kernels_and_model(module):
    """Not through others either."""
    seen, todo = set(), [module]
    while todo:
        for other in imports_of(PACKAGE / f"{todo.pop()}.py") - seen:
            seen.add(other)
            if (PACKAGE / f"{other}.py").exists():
                todo.append(other)
    assert not seen & {
        "_kernels",
        "_attention",
        "_cache",
        "model",
        "kv_cache",
        "weights",
        "gguf",
        "llm",
        "__init__",
    }


@pytest.mark.parametrize(
    ("user", "used"),
    [("llm", "scheduler"), ("llm", "model"), ("model", "kv_cache"), ("kv_cache", "_attention")],
)
def test_the_imports_of_the_design_are_found_by_this_test(user, used):
    assert used in imports_of(PACKAGE / f"{user}.py")


def test_types_are_the_only_reason_to_import_upwards():
    """The one case there is; it keeps the rule above honest about what it leaves out."""
    assert "from lariat.formats.gguf import GGUFFile" in (PACKAGE / "config.py").read_text()
    assert "gguf" not in imports_of(PACKAGE / "config.py")


# ---- public names ----


def test_the_public_names():
    asked_for = {"LLM", "SamplingParams", "Tokenizer", "GGUFFile", "GGUFError"}
    errors = {"LariatError", "ModelError", "ChatError", "ContextError"}
    others = {"Chat", "ChunkLibrary", "Completion", "Context", "DEMO_MODEL", "RopeConfig"}
    assert set(lariat.__all__) == asked_for | errors | others
    for name in set(lariat.__all__) - {"DEMO_MODEL"}:
        assert inspect.isclass(getattr(lariat, name))


def test_nothing_else_looks_public():
    names = {name for name in vars(lariat) if not name.startswith("_")} | set(lariat.__all__)
    modules = {name for name in names if isinstance(getattr(lariat, name), types.ModuleType)}
    means = {"annotations", "TYPE_CHECKING", "import_module"}
    assert names - modules - means == set(lariat.__all__)


def test_importing_the_package_loads_no_kernels():
    code = "import sys, lariat; print(sorted(m for m in sys.modules if m.startswith('lariat.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


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
    assert {"LLM", "LLM.stream", "LLM.generate", "Stream.close"} <= set(names)


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
