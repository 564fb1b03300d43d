"""The local stack: an embedded broker, database and model, and the services, supervised.

The public surface for the command line, the demo and the tests. What a stack consists of is in
catalogue.py, how it is kept running in supervisor.py, what one may do with it in control.py.
"""

from tollbook.stack.catalogue import HOUSE_ACCOUNT
from tollbook.stack.control import Stack, running_stack
from tollbook.stack.errors import NotReady, PartFailed, StackError, Unusable

__all__ = [
    "HOUSE_ACCOUNT",
    "NotReady",
    "PartFailed",
    "Stack",
    "StackError",
    "Unusable",
    "running_stack",
]
