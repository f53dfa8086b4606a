"""BDAT (RFC 3030): a message in chunks, each of as many octets as its command says.

The rule: whatever is said to a chunk, its octets are read first, and never as commands. A refusal of one
ends the transaction, so that what was already pipelined behind it is out of sequence. BDAT whose size
can't be read ends the session (`mta.inbound_session`).
"""

from mta.core.reply import Reply
from mta.inbound_data import DRAIN_MAX, ChunkReader, MessageReader
from mta.inbound_phase import Phase
from mta.inbound_secure import SecureSession
from mta.inbound_session import BDAT, reply_to_fault


class ChunkedSession(SecureSession):
    """A session that takes chunks; `mta.inbound.Inbound` knows the transaction that they belong to."""

    _chunk_left = 0
    """Octets of the chunk that are still to come."""
    _chunk_size = 0
    _chunk_is_last = False
    _chunk_reader: ChunkReader | None = None
    _chunk_refusal: Reply | None = None
    """Why a chunk belongs to no message; then its octets are thrown away."""

    def _begin_chunk(self, size: int) -> ChunkReader | Reply:
        """Return who reads a chunk of ``size`` octets, or why nobody does."""
        raise NotImplementedError

    def _feed(self, message: MessageReader, data: bytes) -> bytes | None:
        """Give a message what was read, within the budget."""
        raise NotImplementedError

    def _end_of_message(self, message: MessageReader) -> None:
        """Submit what was read, or say why not."""
        raise NotImplementedError

    async def smtp_BDAT(self, arg: str) -> None:
        """RFC 3030 2. The reply comes after the octets."""
        command = BDAT.fullmatch(self._line)
        assert command is not None, self._line
        self._chunk_size = self._chunk_left = int(command[1])
        self._chunk_is_last = command[2] is not None
        try:
            reader = self._begin_chunk(self._chunk_size)
        except Exception as error:  # noqa: BLE001 - our fault, whatever it is, is a 4xx for the client
            self._log_fault("BDAT", error)
            self._reset()
            reader = reply_to_fault(error)
        if isinstance(reader, Reply):
            self._chunk_reader, self._chunk_refusal = None, reader
        else:
            self._chunk_reader, self._chunk_refusal = reader, None
        self.phase = Phase.CHUNK

    def _take_chunk(self, data: bytes, at: int) -> int:
        stop = min(len(data), at + self._chunk_left)
        if stop > at:
            self._arrived(stop - at)
            self._chunk_left -= stop - at
            reader = self._chunk_reader
            if reader is not None:
                self._feed(reader, data[at:stop] if stop - at < len(data) else data)
            refusal = self._chunk_refusal if reader is None else reader.refusal
            if refusal is not None and self._is_too_much(reader):
                self._reject_input(refusal)
                return stop
        if not self._chunk_left:
            self._end_chunk()
        return stop

    def _is_too_much(self, reader: ChunkReader | None) -> bool:
        """Say whether so much of a refused chunk was read that it isn't worth waiting for its end."""
        if reader is not None:
            return reader.is_endless
        return self._chunk_size - self._chunk_left > self.limits.max_message_size + DRAIN_MAX

    def _end_chunk(self) -> None:
        """Answer a chunk that was read, or begin to make its message durable."""
        reader, self._chunk_reader = self._chunk_reader, None
        self.phase = Phase.COMMAND
        if reader is None:
            assert self._chunk_refusal is not None
            self.fail(self._chunk_refusal)
            return
        if self._chunk_is_last:
            reader.end()
            self._end_of_message(reader)
        elif reader.refusal is not None:
            self._reset()
            self.fail(reader.refusal)
        else:
            self._output.append(f"250 2.0.0 {self._chunk_size} octets received\r\n".encode())
