"""A network to test on: virtual hosts, links and faults, and what is needed to look at them."""

from .._options import Link as Link
from .conformance import check_listener as check_listener
from .trace import Endpoint as Endpoint
from .trace import Event as Event
from .trace import Segment as Segment
from .trace import Trace as Trace

__all__ = ("Endpoint", "Event", "Link", "Segment", "Trace", "check_listener")
