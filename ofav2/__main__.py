"""Run the command `ofav2` as `python -m ofav2`."""

from ofav2.cli.main import main

raise SystemExit(main())
