"""`python -m specialize_nb`: the command `specialize-nb`."""

import sys

from specialize_nb.audits.cli import main

sys.exit(main())
