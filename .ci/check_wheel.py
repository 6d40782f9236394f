"""The installed wheel, away from the clone: its own files, every public name, the demo's world."""

import sys
from importlib.metadata import version
from pathlib import Path

import hfrlhf

home = Path(hfrlhf.__file__).parent
assert Path(sys.prefix) in home.parents, f"{home} is not the wheel's"
assert version("hfrlhf") == hfrlhf.__version__
names = {name: getattr(hfrlhf, name) for name in hfrlhf.__all__}
print(f"hfrlhf {hfrlhf.__version__}: {', '.join(names)}")
