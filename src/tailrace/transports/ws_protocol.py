"""The raw-write server extension for WebSockets: an uvicorn protocol that lends its transport.

Rules of this file
1. Offered to every WebSocket as `scope["extensions"]["tailrace.raw"]`; it can be armed once the handshake is complete.
2. Armed only after this server saw, outside of all middleware, the expected first message pass unchanged.
3. What is written raw are whole unmasked text messages; between two of them the library may write its own frames.
   Once a close frame was sent or received, or the connection was lost, the channel takes nothing more.
4. A connection that goes away with bytes unsent can be aborted: a graceful close would wait for a reader that is not
   there.
5. A message is at most 64 KiB (a setting); a larger one ends the connection with 4503, broken framing with the
   standard's codes. What the client is still sending is read and dropped for a moment, or a reset would swallow the
   close frame.
6. An address in a log line never shows its query: tokens are in it.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode as StandardCode
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tailrace.codes import CloseCode
from tailrace.transports.rawhttp import EXTENSION, Lender, RawChannel

__all__ = ["RawWebSocketProtocol", "WsOffer"]

CLOSE_SECONDS = 5.0
"""How long the client has to answer a close frame."""
GRACE_SECONDS = 1.0
"""How long the application has to close its connections when the server ends, before they are closed for it."""


class WsOffer:
    """What the application finds in its scope: `expect` the first message, `send` it, then `arm`."""

    def __init__(self, protocol: RawWebSocketProtocol) -> None:
        self._protocol = protocol
        self._expected: str | None = None
        self._passed = False

    def expect(self, first: str) -> None:
        """Say which text the next message will carry."""
        self._expected = first

    def arm(self) -> RawChannel | None:
        """The channel, if the first message reached the server as it was; None: go on with `send()`."""
        return self._protocol.lend() if self._passed else None

    def abort(self) -> None:
        """Close the connection at once, with what is unsent."""
        self._protocol.transport.abort()

    @property
    def gone(self) -> bool:
        """Whether the connection is closing or closed."""
        return self._protocol.transport.is_closing()

    def saw(self, message: Any) -> None:
        """A message as it leaves the outermost application."""
        if message["type"] == "websocket.send" and self._expected is not None:
            self._passed = message.get("text") == self._expected
            self._expected = None
        elif message["type"] == "websocket.close":
            self._protocol.take_back()


class RawWebSocketProtocol(Lender, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with the extension; without compression and without pings of its own."""

    message_bytes = 65_536
    """A larger message of a client ends its connection."""

    _failed = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # Whatever uvicorn was told: a client cannot make us hold more than this, nor inflate anything.
        self.conn = _Conversation(max_size=self.message_bytes, logger=logging.getLogger("uvicorn.error"))
        self.ping_interval = None
        self.close_timeout = CLOSE_SECONDS
        self.logger = cast(logging.Logger, _Discreet(self.logger, {}))

    def handle_connect(self, event: Request) -> None:
        """The handshake's request: offer the extension to the application that will answer it."""
        self.app = _offering(self.app, WsOffer(self))
        super().handle_connect(event)

    def data_received(self, data: bytes) -> None:
        """Parse; after broken framing nothing is believed any more."""
        if not self._failed:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.take_back()
        super().connection_lost(exc)

    def handle_ping(self) -> None:
        """A ping; one that came in the same bytes as broken framing is not answered.

        Nor is one of a client that does not read: the standard asks for the last one's answer only, and a flood of them
        would fill our memory.
        """
        if not self._failed and self.transport.get_write_buffer_size() <= self.unsent_bytes:
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_close(self, event: Frame) -> None:
        """The client's close frame: nothing may follow our answer to it."""
        self.take_back()
        if not self._failed:
            super().handle_close(event)

    def send_receive_event_to_app(self) -> None:
        """A whole message. One that is not UTF-8 fails the connection, unless the client's goodbye came with it."""
        try:
            super().send_receive_event_to_app()
        except InvalidState:
            self.logger.info("a client said goodbye after text that is not UTF-8")

    def handle_parser_exception(self) -> None:
        """The client broke the framing or a limit: the close frame is the last thing it gets (rule 5)."""
        self.take_back()
        self._failed = True
        closed = self.conn.close_sent
        if closed is None:
            # The error came after our own close frame, or before any frame; there is nothing left to say.
            self.transport.close()
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_SECONDS, self.transport.close)

    def shutdown(self) -> None:
        """The server ends. Who was told to go by the application is given the time to be told."""
        if self.handshake_complete and not self.close_sent and not self.disconnected:
            self.loop.call_later(GRACE_SECONDS, self._send_away)
        else:
            self.take_back()
            super().shutdown()

    def _send_away(self) -> None:
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.take_back()
        code = CloseCode.GOING_AWAY
        self.queue.put_nowait({"type": "websocket.disconnect", "code": int(code), "reason": code.name})
        self.conn.send_close(code, code.name)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()

    def lend(self) -> RawChannel | None:
        """Lend the transport; None: it is closing."""
        if self.transport.is_closing() or self.close_sent or self.disconnected:
            return None
        return self.lend_transport(self.transport, paused=not self.writable.is_set())


class _Conversation(ServerProtocol):
    """The library's protocol, closing with our own code where a client has to know what to do next."""

    def fail(self, code: int, reason: str = "") -> None:
        if code == StandardCode.MESSAGE_TOO_BIG:
            code, reason = CloseCode.TOO_LARGE, f"a message is at most {self.max_message_size} bytes"
        super().fail(code, reason)


class _Discreet(logging.LoggerAdapter[logging.Logger]):
    """uvicorn logs every WebSocket's whole address, and a traceback for text that is not UTF-8 (rule 6)."""

    @property
    def level(self) -> int:
        """uvicorn compares it with its trace level at every connection."""
        return self.logger.level

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        """The handshake's outcome, without the query."""
        self.logger.info(msg, *(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in args), **kwargs)

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        """A failed application keeps its traceback; a client's mistake is no error of ours."""
        if str(msg).startswith("Invalid UTF-8"):
            self.logger.info("a client sent text that is not UTF-8")
        else:
            self.logger.exception(msg, *args, **kwargs)


def _offering(app: Any, offer: WsOffer) -> Any:
    """The application with the offer in its scope and the server's eyes outside of it (rule 2)."""

    async def offering(scope: Any, receive: Any, send: Any) -> None:
        async def watch(message: Any) -> None:
            offer.saw(message)
            await send(message)
            if message["type"] == "websocket.accept" and offer.gone:
                # uvicorn accepts nothing then, says nothing, and takes the next message for a defect.
                raise ClientDisconnected

        scope["extensions"][EXTENSION] = offer
        await app(scope, receive, watch)

    return offering
