"""`python -m ofav2` is the command `ofav2`."""

from ofav2.cli.main import main

raise SystemExit(main())
