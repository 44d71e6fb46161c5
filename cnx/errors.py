"""The one error that is the user's to mend."""


class InputError(Exception):
    """Bad input: the message is one line that names the file or key, the value, and the remedy.

    `run.py` prints the message without a traceback and exits with status 1.
    """
