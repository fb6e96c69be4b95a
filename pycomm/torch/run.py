"""Runs a script of torch.distributed's with backend "pycomm" at hand, without a line of ours in it.

    python -m pycomm.launch -n 4 -m pycomm.torch.run script.py [arguments]

Connects the ranks, sets RANK and its kin, and makes "pycomm" the backend of CPU tensors where the script's
`init_process_group()` names none. One that is named (`"gloo"`) stays: name "pycomm" there.
"""

from __future__ import annotations

import runpy
import sys

import torch.distributed as dist

import pycomm
from pycomm.torch import BACKEND


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if arguments else 2)
    pycomm.init()
    dist.Backend.default_device_backend_map["cpu"] = BACKEND
    if arguments[0] == "-m" and len(arguments) > 1:
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
