"""A network to test on: virtual hosts, links and faults, and what is needed to look at them.

A program is tested by running it, unchanged, where nothing is left to chance::

    from trionet.testing import simulate


    async def main() -> str:
        with trio.move_on_after(3600) as scope:  # an hour, which takes no time
            await trio.sleep_forever()
        return "late" if scope.cancelled_caught else "in time"


    def test_an_hour_is_enough_to_be_late() -> None:
        run = simulate(main, seed=7)

        assert run.result == "late"
        assert run.time == 3600
        assert run.digest == simulate(main, seed=7).digest

One seed is one order of events. A race is a bug under some of them, so try several: ``seeds`` of
them, from 0 on. The one that fails is told, and fails again each time it is asked for::

    @simulated(seeds=200)
    async def test_nothing_is_served_twice() -> None: ...


    @simulated(seeds=[137])
    async def test_nothing_is_served_twice() -> None: ...

What would hang ends with a `Deadlock`, which shows every task and what it waits for. What would
make a run depend on the world around it ends it, too: a real socket (`EscapeError`), a slow thread
(`OutrunError`).

Chance in the test itself: ``random`` is seeded, and `random_stream` has generators that do not
disturb each other. Libraries that look at the clock of the wall see virtual time.

With pytest, the plugin does all this for tests that ask for the fixture ``net``: see
`trionet.pytest_plugin`.
"""

from .._options import Link as Link
from .conformance import check_listener as check_listener
from .conformance import check_network as check_network
from .dns import DNS as DNS
from .faults import Fault as Fault
from .faulty import FaultyStream as FaultyStream
from .faulty import HalfCloseableFaultyStream as HalfCloseableFaultyStream
from .host import Host as Host
from .netstat import NetstatLine as NetstatLine
from .network import VirtualNetwork as VirtualNetwork
from .problems import Deadlock as Deadlock
from .problems import EscapeError as EscapeError
from .problems import OutrunError as OutrunError
from .problems import SimulationError as SimulationError
from .problems import TimeLimitError as TimeLimitError
from .rules import Delay as Delay
from .rules import Deliver as Deliver
from .rules import Drop as Drop
from .rules import Reset as Reset
from .simulation import Run as Run
from .simulation import random_stream as random_stream
from .simulation import simulate as simulate
from .simulation import simulated as simulated
from .streams import VirtualListener as VirtualListener
from .streams import VirtualStream as VirtualStream
from .trace import Endpoint as Endpoint
from .trace import Event as Event
from .trace import Segment as Segment
from .trace import Trace as Trace

__all__ = (
    "DNS",
    "Deadlock",
    "Delay",
    "Deliver",
    "Drop",
    "Endpoint",
    "EscapeError",
    "Event",
    "Fault",
    "FaultyStream",
    "HalfCloseableFaultyStream",
    "Host",
    "Link",
    "NetstatLine",
    "OutrunError",
    "Reset",
    "Run",
    "Segment",
    "SimulationError",
    "TimeLimitError",
    "Trace",
    "VirtualListener",
    "VirtualNetwork",
    "VirtualStream",
    "check_listener",
    "check_network",
    "random_stream",
    "simulate",
    "simulated",
)
