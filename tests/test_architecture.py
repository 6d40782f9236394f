"""The architecture, kept by the machine: one rule per function, each shown to fail on a small bad tree.

A rule takes the root of a tree and returns its complaints, a line each. Everything is read with `ast`; nothing of the
package is imported.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Imports point downwards only. The card is facts in, text out, so that trainers may write it.
LEVELS = {
    "core": 0,
    "experience": 1,
    "algorithms": 1,
    "reporting.plain_text": 1,  # what shows words on a screen is everybody's
    "reporting.screen": 1,
    "models": 2,
    "data": 3,
    "settings": 3,
    "rollout": 4,
    "rewards": 4,
    "reporting": 5,
    "runs": 5,
    "learning": 6,
    "evaluation": 6,
    "trainers": 7,
    "cli": 8,
    "demo": 9,
}

# The only file that may import an optional package; None where a library of ours reaches it for us (`--report_to`).
HOMES = {
    "bitsandbytes": "hfrlhf/models/libraries.py",
    "deepspeed": "hfrlhf/models/libraries.py",
    **dict.fromkeys(["aim", "clearml", "comet_ml", "dvclive", "mlflow", "tensorboard", "trackio", "vllm", "wandb"]),
}

CORE_MAY_IMPORT = {"hfrlhf", "torch", "numpy"} | sys.stdlib_module_names

# Where the name to import is not the name to install.
DISTRIBUTIONS = {"yaml": "pyyaml"}

# Target lines of the larger files; a file may grow to 1.5 times its target, then it is split.
TARGET_LINES = {
    "hfrlhf/__init__.py": 60,
    "hfrlhf/models/policy/actor_critic.py": 220,
    "hfrlhf/rewards/sources.py": 200,
    "hfrlhf/settings/policy_gradient.py": 250,
    "hfrlhf/trainers/reward.py": 230,
    "hfrlhf/trainers/run_trainer.py": 290,
    "hfrlhf/trainers/policy_gradient.py": 350,
}
DEFAULT_TARGET_LINES = 200
MAX_FILES = {"hfrlhf/core": 15}  # of a folder, beside `__init__`
DEFAULT_MAX_FILES = 12
MAX_FUNCTION_LINES = 60
MAX_README_LINES = 180

MACHINE_PATH = re.compile(r"(?<![\w.*$}-])/(work|tmp|root)/")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|NotImplement" + r"edError)\b")
DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal"}
DRAWS_IN_PLACE = {"normal_", "uniform_", "bernoulli_", "exponential_", "random_", "multinomial"}
PICKLES = {"pickle.load", "pickle.loads", "joblib.load", "np.load", "numpy.load", "pd.read_pickle"}
# Of these libraries everything is imported from the top, and what is not there in LIBRARIES_FILE alone.
LIBRARIES = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "evaluate",
    "huggingface_hub",
    "peft",
    "transformers",
}
LIBRARIES |= {"trl"}
LIBRARIES_FILE = "hfrlhf/models/libraries.py"
# Inside a library, and yet everybody's: the logging of transformers, which its own documentation imports like this.
FROM_INSIDE = {("transformers.utils", "logging")}
UNDERSCORED_BUT_PUBLIC = {"_replace", "_asdict", "_fields"}  # of a named tuple
# Whose attributes are assigned from outside, because their libraries would have it so: by the name that we give them.
ASSIGNED_TO = {
    *("model", "reward_model", "module", "head", "root", "policy", "parameter", "tokenizer", "config", "peft_config"),
    *("get_text_config", "control", "state", "training_bar", "ctx", "parser", "action", "sys"),
    "record",  # of settings, as the command line has just read it
}
RUN_TRAINER = ("hfrlhf/trainers/run_trainer.py", "RunTrainer")
UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
NUMPY_WITH_ADDRESS = {"Generator", "Philox", "PCG64", "SeedSequence", "default_rng", "get_state"}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(root: Path, *folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield path.relative_to(root).as_posix(), parse(path)


def tracked(root: Path) -> list[Path]:
    """The text files that belong to the project: git's list, or every file where there is no repository."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    names = [name for name in listing.stdout.split("\0") if name]
    paths = [root / name for name in names] or [path for path in root.rglob("*") if path.is_file()]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(root: Path, file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, relative ones resolved, down to the submodule where one is named."""
    package = module_name(file).split(".")
    if not file.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = root.joinpath(*base.split("."), alias.name)
                is_module = deeper.is_dir() or deeper.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def room(module: str) -> str:
    """The entry of LEVELS that a module belongs to; its folder where there is none."""
    parts = module.split(".")[1:]
    return next((name for name in (".".join(parts[:2]), *parts[:1]) if name in LEVELS), ".".join(parts[:1]))


def level(module: str) -> int | None:
    return LEVELS.get(room(module))


def imports_point_downwards(root: Path) -> list[str]:
    complaints = []
    for file, tree in sources(root, "hfrlhf"):
        own = level(module_name(file))
        if file == "hfrlhf/__init__.py":
            continue
        if own is None:
            complaints.append(f"{file}: has no level; add it to LEVELS")
            continue
        for line, target in imports(root, file, tree):
            if target.split(".")[0] != "hfrlhf":
                continue
            other = level(target)
            if other is None:
                complaints.append(f"{file}:{line}: import from the module that defines it, not from {target}")
            elif other > own or (other == own and room(target) != room(module_name(file))):
                complaints.append(f"{file}:{line}: level {own} imports {target} of level {other}")
    return complaints


def imports_have_no_cycle(root: Path) -> list[str]:
    graph = {}
    for file, tree in sources(root, "hfrlhf"):
        graph[module_name(file)] = {target for _, target in imports(root, file, tree)} - {module_name(file)}
    done: set[str] = set()
    complaints = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            complaints.append("cycle: " + " -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph[module] & graph.keys()):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    return complaints


def rooms_are_packages(root: Path) -> list[str]:
    folders = {path.parent for path in (root / "hfrlhf").rglob("*.py")}
    missing = sorted(folder for folder in folders if not (folder / "__init__.py").is_file())
    return [f"{folder.relative_to(root)}: has no __init__.py" for folder in missing]


def optional_packages_stay_in_their_file(root: Path) -> list[str]:
    complaints = []
    for file, tree in sources(root, "hfrlhf", "recipes"):
        for line, target in imports(root, file, tree):
            package = target.split(".")[0]
            if package in HOMES and file != HOMES[package]:
                complaints.append(f"{file}:{line}: imports {package}, whose place is {HOMES[package] or 'nowhere'}")
    return complaints


def imports_are_declared(root: Path) -> list[str]:
    """A leftover install hides a missing dependency; this does not."""
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    block = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    declared = {name.lower() for name in re.findall(r'^\s*"([\w-]+)', block, re.MULTILINE)}
    beside = {path.stem for path in (root / "recipes").glob("*.py")}  # a recipe may build on another
    known = {"hfrlhf", *HOMES} | sys.stdlib_module_names | beside
    return [
        f"{file}:{line}: {target} is no dependency in pyproject.toml"
        for file, tree in sources(root, "hfrlhf", "recipes")
        for line, target in imports(root, file, tree)
        if (package := target.split(".")[0]) not in known
        if DISTRIBUTIONS.get(package, package) not in declared
    ]


def core_is_pure(root: Path) -> list[str]:
    return [
        f"{file}:{line}: core imports {target}"
        for file, tree in sources(root, "hfrlhf/core")
        for line, target in imports(root, file, tree)
        if target.split(".")[0] not in CORE_MAY_IMPORT
    ]


def randomness_has_an_address(root: Path) -> list[str]:
    complaints = []
    for file, tree in sources(root, "hfrlhf"):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, name = ast.unparse(node.func.value), node.func.attr
            seeded = any(keyword.arg == "generator" for keyword in node.keywords)
            draws = (
                (owner == "torch" and name in DRAWS)
                or (owner not in {"torch", "torch.nn.init", "nn.init", "init"} and name in DRAWS_IN_PLACE)
                or (owner == "random" and name not in {"Random", "getstate"})
                or (owner in {"np.random", "numpy.random"} and name not in NUMPY_WITH_ADDRESS)
            )
            if draws and not seeded:
                complaints.append(f"{file}:{node.lineno}: {owner}.{name}() draws from a global generator")
    return complaints


def public_things_have_docstrings(root: Path) -> list[str]:
    complaints = []

    def visit(file: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> None:
        if ast.get_docstring(node) is None:
            complaints.append(f"{file}:{getattr(node, 'lineno', 1)}: {name} has no docstring")
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                public = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                if public and not child.name.startswith("_"):
                    visit(file, child, child.name)

    for file, tree in sources(root, "hfrlhf", "recipes"):
        if tree.body:
            visit(file, tree, "the module")
    return complaints


def functions_are_short(root: Path) -> list[str]:
    return [
        f"{file}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for file, tree in sources(root, "hfrlhf", "recipes")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def files_are_short(root: Path) -> list[str]:
    complaints = []
    for file, _ in sources(root, "hfrlhf", "recipes"):
        lines = len((root / file).read_text(encoding="utf-8").splitlines())
        limit = TARGET_LINES.get(file, DEFAULT_TARGET_LINES) * 3 // 2
        if lines > limit:
            complaints.append(f"{file}: {lines} lines, at most {limit}: split it")
    return complaints


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def folders_are_small(root: Path) -> list[str]:
    """A room is looked at as a whole."""
    complaints = []
    for folder in sorted({path.parent for path in (root / "hfrlhf").rglob("*.py")}):
        name = folder.relative_to(root).as_posix()
        files = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        if len(files) > MAX_FILES.get(name, DEFAULT_MAX_FILES):
            limit = MAX_FILES.get(name, DEFAULT_MAX_FILES)
            complaints.append(f"{name}: {len(files)} files, at most {limit}: which of them are a room of their own?")
    return complaints


def collaborators_have_types(root: Path) -> list[str]:
    """No method of a class that is not there, no trainer of which nobody knows what is read: mypy has to see both."""
    return [
        f"{file}:{node.lineno}: {node.name}({argument.arg}: Any); name its type, or a Protocol of what is used of it"
        for file, tree in sources(root, "hfrlhf")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if argument.arg in {"self", "trainer"} and argument.annotation and ast.unparse(argument.annotation) == "Any"
    ]


def one_class_inherits_the_trainer(root: Path) -> list[str]:
    """RunTrainer alone derives from a library's Trainer, the others from it, each from one class and nothing beside."""
    complaints, ours = [], set()
    classes = [(f, c) for f, tree in sources(root, "hfrlhf") for c in ast.walk(tree) if isinstance(c, ast.ClassDef)]
    ours = {node.name for _, node in classes}
    for file, node in classes:
        bases = [ast.unparse(base).split(".")[-1].split("[")[0] for base in node.bases]
        trainers = [base for base in bases if base.endswith("Trainer")]
        if trainers and len(bases) > 1:
            complaints.append(f"{file}:{node.lineno}: {node.name} inherits {', '.join(bases)}: hand the others over")
        if any(base not in ours for base in trainers) and (file, node.name) != RUN_TRAINER:
            complaints.append(f"{file}:{node.lineno}: {node.name} inherits {trainers[0]}: derive it from RunTrainer")
    return complaints


def objects_write_their_own_attributes(root: Path) -> list[str]:
    """What an object has is set by itself; of others one asks. A function may fill what it has just made."""
    complaints = []
    for file, tree in sources(root, "hfrlhf"):
        if file == LIBRARIES_FILE:
            continue
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                own = {"self", *made_here(function)}
                for target in assigned_attributes(function):
                    owner = ast.unparse(target.value)
                    if owner not in own and last_name(target.value) not in ASSIGNED_TO:
                        complaints.append(f"{file}:{target.lineno}: {ast.unparse(target)} is assigned from outside")
    return sorted(set(complaints))


def assigned_attributes(function: ast.AST) -> Iterator[ast.Attribute]:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not node.attr.startswith("__"):
            yield node


def made_here(function: ast.AST) -> Iterator[str]:
    """Variables that a function binds to what a class, or a copy, has just given it."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func).split(".")[-1]
            if called[:1].isupper() or called in {"copy", "deepcopy"}:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from map(ast.unparse, targets)


def last_name(node: ast.expr) -> str:
    """`config` of `model.config` and of `model.config()`."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)


def lists_are_lists(root: Path) -> list[str]:
    """No star before a literal tuple, which only has the formatter write several words on a line."""
    return [
        f"{file}:{node.lineno}: *{ast.unparse(node.value)[:30]}… within a list: one name after the other"
        for file, tree in sources(root, "hfrlhf", "recipes")
        for node in ast.walk(tree)
        if isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple | ast.List)
    ]


def nothing_foreign_runs(root: Path) -> list[str]:
    """No code from a model's repository, no pickle: reading either would run what a stranger wrote."""
    complaints = []
    for file, tree in sources(root, "hfrlhf", "recipes"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                named = {k.value: v for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)}
                if _is(named.get("trust_remote_code"), True):
                    complaints.append(f"{file}:{node.lineno}: trusts remote code by itself")
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            called = ast.unparse(node.func)
            if _is(given.get("trust_remote_code"), True):
                complaints.append(f"{file}:{node.lineno}: {called} trusts remote code by itself")
            loads = called == "torch.load" or (called == "load" and file_imports(tree, "torch", "load"))
            if called in PICKLES or (loads and not _is(given.get("weights_only"), True)):
                complaints.append(f"{file}:{node.lineno}: {called} reads a pickle; weights_only=True does not")
            safe = _is(given.get("use_safetensors"), True) or "loading_options" in ast.unparse(node)
            if re.match(r"Auto(Peft)?Model\w*\.from_pretrained$", called) and not safe:
                complaints.append(f"{file}:{node.lineno}: {called} may read a pickle; use_safetensors=True may not")
    return complaints


def file_imports(tree: ast.Module, module: str, name: str) -> bool:
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module]
    return any(alias.name == name for node in froms for alias in node.names)


def prints_go_through_the_screen(root: Path) -> list[str]:
    """What is printed otherwise ends a run where standard output has another encoding, or is closed."""
    return [
        f"{file}:{node.lineno}: prints by itself; `hfrlhf.reporting.screen` does, whatever the stream is"
        for file, tree in sources(root, "hfrlhf", "recipes")
        if file != "hfrlhf/reporting/screen.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "Console", "sys.stdout.write"}
    ]


def texts_name_their_encoding(root: Path) -> list[str]:
    """Without one, what is written on Linux cannot be read on Windows."""
    complaints = []
    for file, tree in sources(root, "hfrlhf", "recipes"):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            is_text = called.endswith((".read_text", ".write_text"))
            if called == "open" or (called.endswith(".open") and called != "os.open"):
                place = 1 if called == "open" else 0
                mode = node.args[place] if len(node.args) > place else given.get("mode", ast.Constant("r"))
                is_text = "b" not in ast.unparse(mode)
            if is_text and "encoding" not in given:
                complaints.append(f"{file}:{node.lineno}: {called} leaves the encoding to the machine")
    return complaints


def private_names_stand_in_one_file(root: Path) -> list[str]:
    """What begins with an underscore and is not ours, and what is imported from inside a library."""
    trees = list(sources(root, "hfrlhf", "recipes"))
    own = UNDERSCORED_BUT_PUBLIC | library_hooks(root) | {name for _, tree in trees for name in own_names(tree)}
    complaints = []
    for file, tree in trees:
        if file == LIBRARIES_FILE:
            continue
        for node in ast.walk(tree):
            names = sorted({name for name in taken_names(node) if re.match(r"_(?!_)", name)} - own)
            complaints += [
                f"{file}:{node.lineno}: {name} is another's private name: {LIBRARIES_FILE}" for name in names
            ]
            complaints += [
                f"{file}:{node.lineno}: {name} comes from inside a library: {LIBRARIES_FILE}"
                for name in from_inside(node)
            ]
    return complaints


def own_names(tree: ast.Module) -> Iterator[str]:
    """The functions, classes, variables and attributes that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def taken_names(node: ast.AST) -> list[str]:
    """The attributes and imported names that a node reads, also by `getattr` and the like."""
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr", "setattr", "delattr"}:
        return [text.value for text in node.args[1:2] if isinstance(text, ast.Constant)]
    return []


def from_inside(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = [(node.module or "", alias.name) for alias in node.names]
        return [f"{m}.{name}" for m, name in names if "." in m and (m, name) not in FROM_INSIDE and is_library(m)]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if "." in alias.name and is_library(alias.name)]
    return []


def is_library(module: str) -> bool:
    return module.split(".")[0] in LIBRARIES


def library_hooks(root: Path) -> set[str]:
    """What the tables `*_HOOKS` of LIBRARIES_FILE name: methods of the libraries that our classes override."""
    path = root / LIBRARIES_FILE
    found: set[str] = set()
    for node in parse(path).body if path.is_file() else []:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(t, ast.Name) and t.id.endswith("_HOOKS") for t in targets):
            keys = value.keys if isinstance(value, ast.Dict) else value.elts
            found |= {ast.literal_eval(key) for key in keys}
    return found


def nothing_is_for_unix_alone(root: Path) -> list[str]:
    """What only Unix has is imported within the function that also knows what to do without it."""
    return [
        f"{file}:{node.lineno}: imports {name} where the module is imported: not on Windows"
        for file, tree in sources(root, "hfrlhf", "recipes")
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name in UNIX_ONLY
    ]


def no_machine_paths(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}: names a path of one machine"
        for path in tracked(root)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]


def nothing_unfinished(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}: {match[0]}"
        for path in tracked(root)
        if path.suffix in {".py", ".toml", ".yaml", ".md"}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := UNFINISHED.search(line))
    ]


def algorithm_names(root: Path) -> list[str]:
    """The keys of the dict ALGORITHMS, read from the source."""
    path = root / "hfrlhf" / "algorithms.py"
    nodes = ast.walk(parse(path)) if path.is_file() else ()
    tables = [
        node.value for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ALGORITHMS"
    ]
    return [ast.literal_eval(key) for table in tables for key in table.keys]


def readme_shows_the_house(root: Path) -> list[str]:
    text = (root / "README.md").read_text(encoding="utf-8")
    lines = len(text.splitlines())
    complaints = [f"README.md: {lines} lines, at most {MAX_README_LINES}"] if lines > MAX_README_LINES else []
    rooms = [path for path in sorted((root / "hfrlhf").iterdir()) if any(path.glob("*.py"))]
    recipes = sorted((root / "recipes").glob("*.py"))
    for path in [*rooms, *recipes]:
        name = path.relative_to(root).as_posix().removeprefix("hfrlhf/")
        if not re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", text.replace("hfrlhf/", "")):
            complaints.append(f"README.md: does not mention {name}")
    for name in algorithm_names(root):
        if f"| `{name}` |" not in text:
            complaints.append(f"README.md: the table of algorithms has no row {name}")
    for name in re.findall(r"(?<![\w/.])(?:hfrlhf|recipes|tests|model_cards)/[\w./-]*\w", text):
        if not (root / name).exists():
            complaints.append(f"README.md: {name} does not exist")
    return complaints


def contributing_draws_the_house(root: Path) -> list[str]:
    """Every room with its level, and no file that is not there."""
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = text.partition("```text\n")[2].partition("```")[0]
    drawn, floor = {}, ""
    for line in drawing.splitlines():
        if named := re.match(r"(\d| ) {1,2}(\w+)(?:/|\.py) ", line):
            floor = named[1].strip() or floor
            drawn[named[2]] = int(floor)
    there = {p.stem for p in (root / "hfrlhf").iterdir() if any(p.glob("*.py")) or p.suffix == ".py"} - {"__init__"}
    complaints = [f"CONTRIBUTING.md: does not draw {name}" for name in sorted(there - drawn.keys())]
    complaints += [f"CONTRIBUTING.md: draws {name}, which is not there" for name in sorted(drawn.keys() - there)]
    for name in sorted(there & drawn.keys()):
        if drawn[name] != LEVELS.get(name):
            complaints.append(f"CONTRIBUTING.md: draws {name} on level {drawn[name]}")
    for name in re.findall(r"(?<![\w/.])((?:\w+/)*\w+\.(?:py|yaml))\b", text):
        places = [root / name, root / "hfrlhf" / name, *(root / "hfrlhf").rglob(name)]
        if not any(place.exists() for place in places):
            complaints.append(f"CONTRIBUTING.md: {name} does not exist")
    return complaints


RULES: list[Callable[[Path], list[str]]] = [
    imports_point_downwards,
    imports_have_no_cycle,
    rooms_are_packages,
    optional_packages_stay_in_their_file,
    imports_are_declared,
    core_is_pure,
    randomness_has_an_address,
    public_things_have_docstrings,
    functions_are_short,
    files_are_short,
    folders_are_small,
    collaborators_have_types,
    one_class_inherits_the_trainer,
    objects_write_their_own_attributes,
    lists_are_lists,
    nothing_foreign_runs,
    prints_go_through_the_screen,
    texts_name_their_encoding,
    private_names_stand_in_one_file,
    nothing_is_for_unix_alone,
    no_machine_paths,
    nothing_unfinished,
    readme_shows_the_house,
    contributing_draws_the_house,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


GOOD_TREE = {
    "README.md": "The rooms: `core` and `trainers`; the recipe is `recipes/run.py`, maths in `hfrlhf/core/maths.py`.\n",
    "CONTRIBUTING.md": "```text\n7  trainers/   loops\n0  core/   maths.py\n```\nRead `trainers/loop.py`.\n",
    "pyproject.toml": '[project]\ndependencies = [\n    "numpy>=2",\n    "torch>=2.13,<3",\n]\n',
    "hfrlhf/__init__.py": '"""A package."""\nfrom hfrlhf.trainers.loop import train\n',
    "hfrlhf/core/__init__.py": "",
    "hfrlhf/core/maths.py": '"""Maths."""\nimport math\nimport torch\n',
    "hfrlhf/trainers/__init__.py": "",
    "hfrlhf/trainers/loop.py": (
        '"""A loop."""\nimport torch\nfrom ..core import maths\n\n\ndef train(g):\n    """Trains."""\n'
        "    def step():\n        return torch.rand(2, generator=g)\n    return maths, step\n\n\n"
        "def _helper():\n    pass\n"
    ),
    "recipes/run.py": '"""A recipe."""\n',
}

BAD_FILES = [
    (imports_point_downwards, "hfrlhf/core/bad.py", "from hfrlhf.trainers.loop import train", "level 0 imports"),
    (imports_point_downwards, "hfrlhf/core/bad.py", "from ..trainers import loop", "hfrlhf.trainers.loop of level 7"),
    (imports_point_downwards, "hfrlhf/core/bad.py", "def f():\n    import hfrlhf.demo.world", "level 9"),
    (imports_point_downwards, "hfrlhf/reporting/model_card.py", "from hfrlhf.trainers import loop", "level 5 imports"),
    (imports_point_downwards, "hfrlhf/trainers/bad.py", "from hfrlhf import train", "the module that defines it"),
    (imports_point_downwards, "hfrlhf/settings/bad.py", "from hfrlhf.data import prompts", "level 3 imports"),
    (imports_point_downwards, "hfrlhf/attic/old.py", "x = 1", "has no level"),
    (imports_have_no_cycle, "hfrlhf/core/maths.py", "from hfrlhf.trainers import loop", "cycle: "),
    (rooms_are_packages, "hfrlhf/data/prompts.py", "x = 1", "hfrlhf/data: has no __init__.py"),
    (optional_packages_stay_in_their_file, "hfrlhf/trainers/bad.py", "import vllm.engine", "imports vllm"),
    (optional_packages_stay_in_their_file, "hfrlhf/models/bad.py", "def f():\n    import bitsandbytes", "bitsandbytes"),
    (optional_packages_stay_in_their_file, "recipes/bad.py", "from wandb import init", "nowhere"),
    (imports_are_declared, "hfrlhf/data/bad.py", "def f():\n    import scipy.stats", "scipy.stats is no dependency"),
    (imports_are_declared, "pyproject.toml", "[project]\ndependencies = [\n]\n", "torch is no dependency"),
    (core_is_pure, "hfrlhf/core/bad.py", "from transformers import Trainer", "core imports transformers"),
    (randomness_has_an_address, "hfrlhf/data/bad.py", "import torch\ntorch.randperm(3)", "torch.randperm()"),
    (randomness_has_an_address, "hfrlhf/data/bad.py", "w.normal_(0, 1)", "w.normal_()"),
    (randomness_has_an_address, "hfrlhf/data/bad.py", "import random\nrandom.shuffle([])", "random.shuffle()"),
    (randomness_has_an_address, "hfrlhf/data/bad.py", "import numpy as np\nnp.random.rand(3)", "np.random.rand()"),
    (public_things_have_docstrings, "hfrlhf/data/bad.py", '"""M."""\ndef load():\n    pass', "load has no docstring"),
    (
        public_things_have_docstrings,
        "hfrlhf/data/bad.py",
        '"""M."""\nclass A:\n    "a"\n    def go(self): ...',
        "go has",
    ),
    (public_things_have_docstrings, "recipes/bad.py", "x = 1", "the module has no docstring"),
    (functions_are_short, "hfrlhf/data/bad.py", "def long():\n" + "    pass\n" * 60, "long has 61 lines"),
    (files_are_short, "hfrlhf/data/bad.py", "x = 1\n" * 301, "301 lines, at most 300"),
    (folders_are_small, " ".join(f"hfrlhf/data/m{n}.py" for n in range(13)), "x = 1", "hfrlhf/data: 13 files, at most"),
    (files_are_short, "hfrlhf/__init__.py", "x = 1\n" * 91, "91 lines, at most 90"),
    (collaborators_have_types, "hfrlhf/data/bad.py", "def f(self: Any): ...", "f(self: Any); name its type"),
    (collaborators_have_types, "hfrlhf/data/bad.py", "def f(*, trainer: Any): ...", "f(trainer: Any); name"),
    (one_class_inherits_the_trainer, "hfrlhf/trainers/bad.py", "class A(Trainer): ...", "A inherits Trainer: derive"),
    (one_class_inherits_the_trainer, "hfrlhf/demo/bad.py", "class A(trl.SFTTrainer): ...", "A inherits SFTTrainer"),
    (
        one_class_inherits_the_trainer,
        "hfrlhf/trainers/run_trainer.py",
        "class RunTrainer(Guarded, Trainer): ...",
        "RunTrainer inherits Guarded, Trainer: hand the others over",
    ),
    (
        objects_write_their_own_attributes,
        "hfrlhf/data/bad.py",
        "def f(trainer):\n    trainer.x = 1",
        "trainer.x is assigned from outside",
    ),
    (
        objects_write_their_own_attributes,
        "hfrlhf/data/bad.py",
        "def f(self):\n    self.cycle.n += 1",
        "self.cycle.n is assigned from outside",
    ),
    (objects_write_their_own_attributes, "hfrlhf/data/bad.py", "def f(a):\n    b, a.c = 1, 2", "a.c is assigned"),
    (lists_are_lists, "hfrlhf/data/bad.py", "NAMES = (*('a', 'b'), 'c')", "one name after the other"),
    (nothing_foreign_runs, "hfrlhf/data/bad.py", "import torch\ntorch.load('x')", "torch.load reads a pickle"),
    (nothing_foreign_runs, "hfrlhf/data/bad.py", "from torch import load\nload('x')", "load reads a pickle"),
    (nothing_foreign_runs, "hfrlhf/data/bad.py", "torch.load('x', weights_only=False)", "torch.load reads a pickle"),
    (nothing_foreign_runs, "recipes/bad.py", "import pickle\npickle.loads(b'')", "pickle.loads reads a pickle"),
    (nothing_foreign_runs, "recipes/bad.py", "A.from_pretrained('x', trust_remote_code=True)", "trusts remote code"),
    (nothing_foreign_runs, "recipes/bad.py", "options = {'trust_remote_code': True}", "trusts remote code"),
    (
        nothing_foreign_runs,
        "hfrlhf/models/bad.py",
        "AutoModelForCausalLM.from_pretrained('x')",
        "use_safetensors=True may not",
    ),
    (texts_name_their_encoding, "hfrlhf/data/bad.py", "text = path.read_text()", "path.read_text leaves the encoding"),
    (texts_name_their_encoding, "hfrlhf/data/bad.py", "path.write_text('ä', newline='')", "path.write_text leaves"),
    (texts_name_their_encoding, "recipes/bad.py", "with open('x', 'a') as file:\n    pass", "open leaves the encoding"),
    (texts_name_their_encoding, "hfrlhf/data/bad.py", "path.open(mode='w')", "path.open leaves the encoding"),
    (
        private_names_stand_in_one_file,
        "hfrlhf/data/bad.py",
        "schedule._last_lr = 1",
        "_last_lr is another's private name",
    ),
    (private_names_stand_in_one_file, "hfrlhf/data/bad.py", "getattr(config, '_name_or_path', '')", "_name_or_path is"),
    (private_names_stand_in_one_file, "hfrlhf/data/bad.py", "def f(self):\n    return self._tr_loss", "_tr_loss is"),
    (private_names_stand_in_one_file, "hfrlhf/data/bad.py", "from trl import _BetaConfig", "_BetaConfig is another's"),
    (private_names_stand_in_one_file, "recipes/bad.py", "from peft.tuners.lora import Linear", "from inside a library"),
    (private_names_stand_in_one_file, "hfrlhf/data/bad.py", "def f():\n    import trl.models", "trl.models comes from"),
    (nothing_is_for_unix_alone, "hfrlhf/data/bad.py", "import os, fcntl", "imports fcntl where the module is imported"),
    (nothing_is_for_unix_alone, "recipes/bad.py", "from resource import getrusage", "imports resource where"),
    (prints_go_through_the_screen, "hfrlhf/data/bad.py", "print('done')", "prints by itself"),
    (prints_go_through_the_screen, "recipes/bad.py", "Console().rule()", "prints by itself"),
    (no_machine_paths, "notes.txt", "see " + "/" + "tmp/results", "names a path of one machine"),
    (nothing_unfinished, "hfrlhf/data/bad.py", "# TO" + "DO: later", "bad.py:1"),
    (nothing_unfinished, "hfrlhf/data/bad.py", "raise NotImplement" + "edError", "bad.py:1"),
    (readme_shows_the_house, "hfrlhf/rewards/__init__.py", "", "does not mention rewards"),
    (readme_shows_the_house, "hfrlhf/algorithms.py", 'ALGORITHMS = {"vpg": 1}', "algorithms has no row vpg"),
    (readme_shows_the_house, "recipes/ppo.py", "", "does not mention recipes/ppo.py"),
    (
        readme_shows_the_house,
        "README.md",
        "core trainers recipes/run.py `hfrlhf/core/gone.py`",
        "gone.py does not exist",
    ),
    (readme_shows_the_house, "README.md", "core trainers recipes/run.py\n" * 181, "181 lines, at most 180"),
    (contributing_draws_the_house, "hfrlhf/rewards/__init__.py", "", "does not draw rewards"),
    (
        contributing_draws_the_house,
        "CONTRIBUTING.md",
        "```text\n4  trainers/   loops\n0  core/   maths\n```",
        "draws trainers on level 4",
    ),
    (
        contributing_draws_the_house,
        "CONTRIBUTING.md",
        "```text\n7  trainers/   loops\n0  core/   maths\n   data/   rows\n```",
        "draws data, which is not there",
    ),
    (
        contributing_draws_the_house,
        "CONTRIBUTING.md",
        "```text\n7  trainers/   gone.py\n0  core/   maths\n```",
        "gone.py does not exist",
    ),
]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_tree_passes(rule: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert rule(write_tree(tmp_path, GOOD_TREE)) == []


@pytest.mark.parametrize(("rule", "file", "text", "complaint"), BAD_FILES)
def test_a_bad_tree_fails(
    rule: Callable[[Path], list[str]], file: str, text: str, complaint: str, tmp_path: Path
) -> None:
    complaints = rule(write_tree(tmp_path, {**GOOD_TREE, **dict.fromkeys(file.split(), text)}))
    assert complaints and all(complaint in line for line in complaints)


def test_every_rule_is_shown_to_fail() -> None:
    assert {case[0] for case in BAD_FILES} == set(RULES)
