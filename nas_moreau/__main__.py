"""`python -m nas_moreau`: the command line."""

import sys

from nas_moreau.cli import main

sys.exit(main())
