"""The one error that a user is meant to read."""


class UserError(Exception):
    """Something that the user can mend. The message names the value, the rule and the remedy.

    Commands print it as one line and exit with `exit_code`.
    """

    exit_code = 2


class TrainerLost(UserError):
    """Another trainer of the run is gone, or never came, so that no sum can be formed."""

    exit_code = 75  # sysexits.h: a temporary failure, try again later
