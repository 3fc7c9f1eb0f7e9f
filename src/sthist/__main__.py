"""``python -m sthist``."""

import sys

from sthist.cli import main

sys.exit(main())
