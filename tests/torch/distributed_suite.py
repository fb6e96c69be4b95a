"""The test-suite of torch.distributed, as torch's own wheel has it, pointed at backend "pycomm".

    python tests/torch/distributed_suite.py [TestPycomm.test_NAME ...]

Ranks are processes that meet in a file, without MPI. Not collected by pytest: all of it takes half an hour
(`make torch-suite`). It needs the package expecttest, as torch's tests do.
"""

import os
import tempfile

# The suite reads these when it is imported; the processes that it starts inherit them.
os.environ.setdefault("BACKEND", "pycomm")
os.environ.setdefault("WORLD_SIZE", "3")
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
if "TEMP_DIR" not in os.environ:
    os.environ["TEMP_DIR"] = tempfile.mkdtemp()

from torch.testing._internal import common_utils
from torch.testing._internal.distributed import distributed_test

import pycomm.torch  # noqa: F401


class TestPycomm(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
    def setUp(self):
        super().setUp()
        self._spawn_processes()


if __name__ == "__main__":
    common_utils.run_tests()
