"""What can go wrong with the local stack.

    StackError
    ├── PartFailed      a part gave up: its restarts are used up, or a step failed
    ├── NotReady        the time given was not enough
    └── Unusable        the machine or a setting stands in the way; the text says what to do

Every message is one line fit to be shown as it is.
"""


class StackError(Exception):
    """The local stack cannot do what was asked."""


class PartFailed(StackError):
    """A part gave up. The message carries the end of its log."""


class NotReady(StackError):
    """A part was not ready in the time given."""


class Unusable(StackError):
    """The machine or a setting stands in the way."""
