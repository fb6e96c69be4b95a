"""Who may include whom, and how long a file may be: `check_layers.py [ROOT]` prints each breach.

The rules are the tables below; csrc/DESIGN.md says why. Exit status 1 when there is a breach.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# Folder of csrc/ -> folders whose headers it may include, besides its own.
LAYERS: dict[str, set[str]] = {
    "core": set(),
    "kernels": {"core"},
    "device": {"core", "kernels"},
    "codec": {"core", "kernels"},
    "transport": {"core"},
    "bootstrap": {"core"},
    "plan": {"core"},
    "algorithm": {"core", "plan"},
    "engine": {"core", "kernels", "codec", "transport", "bootstrap", "plan", "algorithm"},
    "bindings": {
        "core",
        "kernels",
        "codec",
        "transport",
        "bootstrap",
        "plan",
        "algorithm",
        "engine",
        "device",
    },
}

# Headers of others -> the only files under csrc/ that may include them.
FOREIGN: dict[str, str] = {
    r"Python\.h|pybind11/.*": r"bindings/.*",
    r"mpi\.h|mpi-ext\.h": r"(transport|bootstrap)/mpi\.cc",
    r"cuda.*|nvml\.h|cub/.*|thrust/.*": r".*\.cuh?",
    r"nccl\.h": r"transport/nccl\.cc",
    r"torch/.*|ATen/.*|c10/.*": r"",
}

# Python package -> packages of this project that it may import.
PACKAGES: dict[str, set[str]] = {
    "pycomm": {"pycomm"},
    "trainer": {"pycomm", "trainer"},
    "bench": {"pycomm", "trainer", "bench"},
}
PROJECT = {"pycomm", "trainer", "bench", "tests", "build_support"}

LONGEST = 500
SOURCES = {".py", ".cc", ".h", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')


def sources(root: Path, folders: list[str], suffixes: set[str]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(p for p in (root / folder).rglob("*") if p.suffix in suffixes and p.is_file())


def include_breaches(root: Path) -> Iterator[str]:
    csrc = root / "csrc"
    for path in sources(root, ["csrc"], SOURCES - {".py"}):
        name = path.relative_to(csrc).as_posix()
        layer = name.split("/")[0]
        if layer not in LAYERS:
            yield f"csrc/{name}: '{layer}' is no layer; check_layers.py knows {', '.join(LAYERS)}"
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if match:
                for breach in include_breach(csrc, name, quoted=match[1] == '"', header=match[2]):
                    yield f"csrc/{name}:{number}: {breach}"


def include_breach(csrc: Path, name: str, *, quoted: bool, header: str) -> Iterator[str]:
    for pattern, places in FOREIGN.items():
        if re.fullmatch(pattern, header) and not re.fullmatch(places, name):
            yield f"<{header}> may be included only in {places or 'no file'}"
            return
    if not quoted:
        return
    if not (csrc / header).is_file():
        yield f'"{header}" is no file of csrc/; includes are relative to it'
        return
    layer, target = name.split("/")[0], header.split("/")[0]
    if target != layer and target not in LAYERS[layer]:
        allowed = ", ".join(sorted(LAYERS[layer])) or "nothing else"
        yield f'{layer} may not include "{header}"; it may include {allowed}'


def import_breaches(root: Path) -> Iterator[str]:
    for package, allowed in PACKAGES.items():
        for path in sources(root, [package], {".py"}):
            name = path.relative_to(root).as_posix()
            try:
                imported = list(imports(path, root))
            except SyntaxError as error:
                yield f"{name}:{error.lineno}: {error.msg}"
                continue
            for number, module in imported:
                top = module.split(".")[0]
                if top in PROJECT - allowed:
                    yield f"{name}:{number}: {package} may not import {module}"
                elif is_strategy(name) and is_other_strategy(root, name, module):
                    yield f"{name}:{number}: a strategy may not import another ({module})"


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Absolute names of what a file imports, with `from a import b` as a.b."""
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def is_strategy(name: str) -> bool:
    return re.fullmatch(r"trainer/strategies/[a-z]\w*\.py", name) is not None


def is_other_strategy(root: Path, name: str, module: str) -> bool:
    parts = module.split(".")
    return (
        parts[:2] == ["trainer", "strategies"]
        and len(parts) > 2
        and parts[2] != Path(name).stem
        and is_strategy(f"trainer/strategies/{parts[2]}.py")
        and (root / "trainer/strategies" / f"{parts[2]}.py").is_file()
    )


def length_breaches(root: Path) -> Iterator[str]:
    for path in sources(root, ["csrc", "pycomm", "trainer", "bench", "tests", "build_support"], SOURCES):
        lines = len(path.read_text().splitlines())
        if lines > LONGEST:
            yield f"{path.relative_to(root)}: {lines} lines, at most {LONGEST}: what second subject is in it?"


def main(root: Path) -> int:
    if not (root / "csrc").is_dir():
        print(f"check_layers: {root} has no csrc/", file=sys.stderr)
        return 2
    breaches = [*include_breaches(root), *import_breaches(root), *length_breaches(root)]
    print("\n".join(breaches) if breaches else "layers: no breach")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
