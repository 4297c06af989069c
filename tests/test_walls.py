"""The walls between the rooms, checked on the import graph and on what really gets loaded."""

import ast
import fnmatch
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptctl.backends.node_requirements import HUB_PACKAGES, NODE_PACKAGES, TRAINING_PACKAGES
from tests.gptctl.catalogues import install

ROOT = Path(__file__).parents[1]

# What gptctl may know of training: the file contract, and nothing that needs torch.
SHARED = (
    *("errors", "config", "layout", "manifest", "storage", "storage_*", "schedule", "events"),
    *("flops", "preparation", "dataset_store", "hub", "hub_asking", "hellaswag_published"),
    *("reference", "summary", "text_files"),
)
# What trains, or looks at what trains. Everything else runs beside torch, or without it.
NEEDS_TORCH = (
    *("train", "model", "data", "optimizer", "distributed", "checkpoint", "evaluate", "peaks"),
    *("sample", "export", "ranks", "all_reduce", "device_check", "gpu_check", "batch_size"),
    *("hellaswag_score", "hellaswag_run", "eval_hellaswag", "sample_run"),
    *("head", "data_wait", "measurements", "memory_trial", "slow_rank"),
    *("checkpoint_contents", "checkpoint_files"),
)
# Who alone may name a foreign package, by file.
OWNERS = {
    "sky": ("gptctl/backends/sky.py",),
    "yaml": ("gptctl/backends/sky_task.py",),
    "boto3": ("training/storage*.py",),
    "botocore": ("training/storage*.py",),
    "rich": ("gptctl/cli/*.py",),
    "typer": ("gptctl/cli/*.py",),
    "click": ("gptctl/cli/*.py",),
}
HEAVY = ("sky", "boto3", "botocore", "torch", "numpy")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("gptctl", "training")
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in it, inside functions too; types aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            members = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (member for member in members if member in MODULES)
        yield from imports(node)


GRAPH = {name: set(imports(tree)) for name, tree in TREES.items()}


def reachable(start: str) -> set[str]:
    """All that importing `start` may ever load, its own parent packages included."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += GRAPH.get(name, ())
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_the_graph_sees_imports_inside_functions_and_behind_other_modules() -> None:
    tree = ast.parse("def f():\n    import torch.nn\n    from training import train\n")
    assert set(imports(tree)) == {"torch.nn", "training", "training.train"}
    assert "torch" in packages(reachable("training.train"))


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("training")])
def test_training_knows_nothing_of_the_laptop(name: str) -> None:
    assert not packages(GRAPH[name]) & {"gptctl", "sky", "typer", "rich"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("gptctl")])
def test_gptctl_imports_only_the_shared_part_of_training(name: str) -> None:
    used = {n.partition(".")[2] for n in GRAPH[name] if n.startswith("training.")}
    assert [n for n in used if not any(fnmatch.fnmatch(n, allowed) for allowed in SHARED)] == []


@pytest.mark.parametrize(
    "name",
    [n for n in MODULES if n not in {f"training.{name}" for name in NEEDS_TORCH}],
)
def test_nothing_torch_free_can_come_to_load_torch(name: str) -> None:
    assert "torch" not in packages(reachable(name))


@pytest.mark.parametrize("package", OWNERS)
def test_a_foreign_package_is_named_at_its_edge_only(package: str) -> None:
    users = {
        MODULES[name].relative_to(ROOT).as_posix()
        for name, tree in TREES.items()
        if package in packages(GRAPH[name]) or _imports_for_types(tree, package)
    }
    allowed = OWNERS[package]
    assert {
        u for u in users if not any(fnmatch.fnmatch(u, pattern) for pattern in allowed)
    } == set()


def _imports_for_types(tree: ast.AST, package: str) -> bool:
    """An import under TYPE_CHECKING loads nothing, and yet it names the package."""
    return any(
        package in packages(set(imports(ast.Module(body=node.body, type_ignores=[]))))
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
    )


def side_effects(tree: ast.AST) -> list[str]:
    """Talk to the user, leave the program, or look at the environment."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [n for n in ("print", "input", "exit", "quit") if node.func.id == n]
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            found += [n for n in ("sys.exit", "os.environ", "os.getenv", "os._exit") if n == dotted]
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "sys"):
            taken = {alias.name for alias in node.names}
            found += sorted(taken & {"environ", "getenv", "_exit", "exit"})
        elif isinstance(node, ast.Raise) and "SystemExit" in ast.unparse(node):
            found.append("SystemExit")
    return found


def test_side_effects_are_found_in_every_spelling() -> None:
    code = "from os import environ\nprint(os.environ['A'])\nsys.exit(1)\nraise SystemExit\n"
    assert set(side_effects(ast.parse(code))) == {
        *("environ", "print", "os.environ", "sys.exit", "SystemExit"),
    }
    assert side_effects(ast.parse("try:\n    f()\nexcept SystemExit:\n    pass\n")) == []


@pytest.mark.parametrize(
    "name",
    [n for n in MODULES if n.startswith("gptctl") and not n.startswith("gptctl.cli")],
)
def test_below_the_command_line_nothing_prints_asks_exits_or_reads_the_environment(
    name: str,
) -> None:
    assert side_effects(TREES[name]) == []


SMALL = ("msgspec", "boto3", "psutil")
"""What bootstrap.sh installs where all of it could not be: enough to write why into the record."""
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def import_without(packages: set[str], *modules: str) -> None:
    absent = {name.replace("-", "_") for name in packages}
    program = f"ABSENT = {absent!r}{WITHOUT}import {', '.join(modules)}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr


def test_a_node_without_its_packages_can_still_say_so() -> None:
    absent = {*NODE_PACKAGES, "httpx", "fsspec"} - {*SMALL}
    import_without(absent, *(f"training.{name}" for name in ("supervise", "follower", "rescue")))


def test_a_node_does_without_what_its_run_has_no_need_of() -> None:
    import_without({*HUB_PACKAGES}, "training.train", "training.prepare", "training.sample")
    import_without({*TRAINING_PACKAGES}, "training.supervise", "training.prepare")


LOADED_BY = (
    "import sys; from gptctl.cli import main\n"
    "code = main(sys.argv[1:])\n"
    f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
)


def loaded_by(*argv: str, **options: Any) -> str:
    """Exit code of that command line, and what of HEAVY it loaded."""
    program = [sys.executable, "-c", LOADED_BY, *argv]
    ran = subprocess.run(program, capture_output=True, text=True, check=True, **options)
    return ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["--help", "recipes", "recipes --json", "recipes show demo"])
def test_quick_commands_load_nothing_heavy(command: str) -> None:
    assert loaded_by(*command.split()) == "0 []"


def test_plan_and_task_of_a_cloud_run_load_neither_skypilot_nor_torch(tmp_path: Path) -> None:
    install(tmp_path, "lambda")
    (tmp_path / "book.txt").write_text("text")
    command = "launch gpt2-124m --cloud lambda --budget 41 --data book.txt --store s3://bucket/runs"
    keys = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}
    env = {**keys, "HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    loaded = loaded_by(*command.split(), "--dry-run", "--emit", "task.yaml", env=env, cwd=tmp_path)

    assert loaded == "0 ['boto3', 'botocore']"  # which the store's credentials are read by
