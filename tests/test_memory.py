"""Peak memory is that of the program itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from recbole_cdsr.memory import peak_bytes

CODE = "from recbole_cdsr.memory import peak_bytes; print(peak_bytes())"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere getrusage is all there is")
def test_peak_memory_is_not_that_of_the_program_that_started_it():
    alone = int(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout)
    large = np.ones(100_000_000)
    assert peak_bytes() > large.nbytes
    beside = int(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout)
    assert abs(beside - alone) < 2**26
