"""Define the errors that a user can fix; any other exception is a bug."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was given (name and value), the rule it breaks, and the next step. The command line
    prints it without a traceback and exits with code 2.
    """


class RunError(UserError):
    """Something on disk cannot be used: missing, foreign, in use, damaged, or of other content than it must have.

    That is a run folder, an extracted network or a file. A training that diverged is such an error, too, and a written
    file that does not compute what its network does.
    """
