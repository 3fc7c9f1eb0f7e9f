"""``python -m sthist``."""

import sys

from sthist.cli.commands import main

sys.exit(main())
