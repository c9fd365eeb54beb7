"""Messages of the wire format whose checksum is made to fit, whatever else they hold."""

from __future__ import annotations

from crc32c import crc32c


def sealed(message: bytes) -> bytes:
    """The message with the CRC that belongs to its other bytes."""
    checksum = crc32c(message[16:], crc32c(message[8:12]))
    return message[:12] + checksum.to_bytes(4, "little") + message[16:]
