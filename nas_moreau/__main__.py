"""`python -m nas_moreau`: the command line."""

import os
import sys
from contextlib import suppress

with suppress(FileNotFoundError):  # the working folder was removed, which the command line reports
    if not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]  # `python -m` puts the working folder first: its files must not stand in for installed modules

from nas_moreau.cli import main

sys.exit(main())
