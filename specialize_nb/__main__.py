"""`python -m specialize_nb`: the command `specialize-nb`."""

import sys

from specialize_nb.cli import main

sys.exit(main())
