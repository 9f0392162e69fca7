"""Run `python -m MODULE ARGUMENTS` in this process, whose imports are done; the names in capitals are given by `conftest.start`."""

import os
import runpy
import sys
import warnings

os.environ.update(ENVIRONMENT)  # noqa: F821
with open(OUTPUT, "w") as file:  # noqa: F821
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
os.chdir(FOLDER)  # noqa: F821
sys.argv = [MODULE, *ARGUMENTS]  # noqa: F821
warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
runpy.run_module(MODULE, run_name="__main__", alter_sys=True)  # noqa: F821
