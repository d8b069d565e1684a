"""`python -m tests.hostile`: see `run`."""

import sys

from tests.hostile.run import main

sys.exit(main())
