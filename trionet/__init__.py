"""Streams, servers, pools and networks for trio: whatever must move bytes."""

from ._address import Address as Address
from ._errors import LeaseError as LeaseError
from ._errors import PoolClosedError as PoolClosedError
from ._errors import PoolConnectError as PoolConnectError
from ._errors import PoolError as PoolError
from ._errors import PoolFullError as PoolFullError
from ._errors import PoolTimeoutError as PoolTimeoutError
from ._errors import RemoteGoAwayError as RemoteGoAwayError
from ._errors import SessionBrokenError as SessionBrokenError
from ._errors import StreamResetError as StreamResetError
from ._errors import TooLongError as TooLongError
from ._mux.halves import BorrowedStream as BorrowedStream
from ._mux.halves import HalfCloseableBorrowedStream as HalfCloseableBorrowedStream
from ._mux.halves import ReceiveHalf as ReceiveHalf
from ._mux.halves import SendHalf as SendHalf
from ._mux.listener import MuxListener as MuxListener
from ._mux.loan import Loan as Loan
from ._mux.multiplexer import Multiplexer as Multiplexer
from ._mux.multiplexer import MultiplexerStatistics as MultiplexerStatistics
from ._mux.plan import MultiplexerEvent as MultiplexerEvent
from ._mux.session import MuxSession as MuxSession
from ._mux.session import MuxStatistics as MuxStatistics
from ._mux.session import open_mux as open_mux
from ._mux.stream import MuxStream as MuxStream
from ._options import Backoff as Backoff
from ._options import Link as Link
from ._options import MemoryOptions as MemoryOptions
from ._options import ProxyProtocol as ProxyProtocol
from ._options import SocketOptions as SocketOptions
from ._pool.keyed import KeyedPool as KeyedPool
from ._pool.lease import Lease as Lease
from ._pool.pool import Pool as Pool
from ._pool.report import PoolStatistics as PoolStatistics
from ._server.connection import Connection as Connection
from ._server.connection import HalfCloseableConnection as HalfCloseableConnection
from ._server.connection import IdleScope as IdleScope
from ._server.facts import ConnectionInfo as ConnectionInfo
from ._server.facts import ServerStatistics as ServerStatistics
from ._server.facts import ShutdownReport as ShutdownReport
from ._server.limits import Limits as Limits
from ._server.process import inherited_listeners as inherited_listeners
from ._server.process import notify as notify
from ._server.process import run_workers as run_workers
from ._server.serve import serve as serve
from ._server.serve import serve_until_signalled as serve_until_signalled
from ._server.server import Server as Server
from ._streams.buffered import BufferedStream as BufferedStream
from ._streams.buffered import HalfCloseableBufferedStream as HalfCloseableBufferedStream
from ._streams.memory import MemoryStream as MemoryStream
from ._streams.memory import memory_stream_pair as memory_stream_pair
from ._streams.memory_listener import MemoryListener as MemoryListener
from ._streams.network import Network as Network
from ._streams.network import dial as dial
from ._streams.network import listen as listen
from ._streams.network import map_network as map_network
from ._streams.network import names as names
from ._streams.preface import HalfCloseableProxyStream as HalfCloseableProxyStream
from ._streams.preface import ProxyListener as ProxyListener
from ._streams.preface import ProxyStream as ProxyStream
from ._streams.proxy_protocol import ProxyHeader as ProxyHeader
from ._streams.proxy_protocol import ProxyTLV as ProxyTLV
from ._streams.relay import copy as copy
from ._streams.relay import relay as relay
from ._streams.socket_listener import SocketListener as SocketListener
from ._streams.sockets import SocketStream as SocketStream
from ._streams.tls import TLSInfo as TLSInfo
from ._streams.tls import TLSStream as TLSStream
from ._streams.tls_listener import TLSListener as TLSListener
from ._streams.tls_listener import start_tls as start_tls
from .yamux import MuxConfig as MuxConfig

__all__ = (
    "Address",
    "Backoff",
    "BorrowedStream",
    "BufferedStream",
    "Connection",
    "ConnectionInfo",
    "HalfCloseableBorrowedStream",
    "HalfCloseableBufferedStream",
    "HalfCloseableConnection",
    "HalfCloseableProxyStream",
    "IdleScope",
    "KeyedPool",
    "Lease",
    "LeaseError",
    "Limits",
    "Link",
    "Loan",
    "MemoryListener",
    "MemoryOptions",
    "MemoryStream",
    "Multiplexer",
    "MultiplexerEvent",
    "MultiplexerStatistics",
    "MuxConfig",
    "MuxListener",
    "MuxSession",
    "MuxStatistics",
    "MuxStream",
    "Network",
    "Pool",
    "PoolClosedError",
    "PoolConnectError",
    "PoolError",
    "PoolFullError",
    "PoolStatistics",
    "PoolTimeoutError",
    "ProxyHeader",
    "ProxyListener",
    "ProxyProtocol",
    "ProxyStream",
    "ProxyTLV",
    "ReceiveHalf",
    "RemoteGoAwayError",
    "SendHalf",
    "Server",
    "ServerStatistics",
    "SessionBrokenError",
    "ShutdownReport",
    "SocketListener",
    "SocketOptions",
    "SocketStream",
    "StreamResetError",
    "TLSInfo",
    "TLSListener",
    "TLSStream",
    "TooLongError",
    "copy",
    "dial",
    "inherited_listeners",
    "listen",
    "map_network",
    "memory_stream_pair",
    "names",
    "notify",
    "open_mux",
    "relay",
    "run_workers",
    "serve",
    "serve_until_signalled",
    "start_tls",
)
