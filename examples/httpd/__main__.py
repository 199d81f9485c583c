"""Run the server: ``python -m examples.httpd``."""

import sys

from .command_line import main

sys.exit(main())
