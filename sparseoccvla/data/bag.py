"""rosbag2 bags (MCAP, CDR) without ROS: one writer that leaves no half bag, one reader with clear errors."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from backports.zstd import ZstdError
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinitionFormat, Qos
from rosbags.rosbag2 import Reader, ReaderError, StoragePlugin, Writer
from rosbags.serde import SerdeError
from rosbags.typesys import TypesysError, get_types_from_msg

from sparseoccvla.data.messages import TOPICS, new_typestore, typestore
from sparseoccvla.data.output import new_folder
from sparseoccvla.errors import InputError

# In the metadata of every bag written here; only such a bag is ever replaced.
MADE_BY = "sparseoccvla"


class BagError(InputError):
    """A bag can't be read; the text names it, what came, what was wanted and what to do."""


class RawMessage(NamedTuple):
    """A message as it lies in the bag: CDR bytes, encapsulation header included."""

    topic: str
    stamp_ns: int  # log time
    data: bytes


@dataclass(frozen=True)
class Topic:
    name: str
    type: str
    count: int
    qos: tuple[Qos, ...]  # as offered when it was recorded; may be empty

    @property
    def latched(self) -> bool:
        """Whether a late subscriber must still get the last message."""
        return any(qos.durability.name == "TRANSIENT_LOCAL" for qos in self.qos)


class BagWriter:
    """Writes messages in the order they come; the folder appears when the block ends well.

    An existing folder is replaced when its metadata says that it was written here, else refused.

    Raises:
        OutputError: a foreign folder in the way, another writer at work, no room.
    """

    def __init__(self, out: Path, notes: Mapping[str, str], needed_bytes: int = 0) -> None:
        """Args: `notes` go into the metadata's custom data, so that a bag says where it comes from."""
        self._out = out
        self._notes = {MADE_BY: "1", **notes}
        self._needed_bytes = needed_bytes
        self._connections: dict[str, Connection] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            work = stack.enter_context(new_folder(self._out, is_our_bag, self._needed_bytes))
            work.rmdir()  # rosbags wants to make it
            self._writer = stack.enter_context(
                Writer(work, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP)
            )
            self._stack = stack.pop_all()
        for key, value in self._notes.items():
            self._writer.set_custom_data(key, value)
        return self

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        """Append a message made by `messages` to a topic of `TOPICS`; `stamp_ns` is its log time."""
        if topic not in self._connections:
            kind, qos = TOPICS[topic]
            self.add_topic(topic, kind, qos)
        connection = self._connections[topic]
        self._writer.write(connection, stamp_ns, typestore().serialize_cdr(message, connection.msgtype))

    def add_topic(self, topic: str, kind: str, qos: Qos) -> None:
        """Announce any other topic, for `write_raw`; `kind` is a type of Jazzy or ours."""
        self._connections[topic] = self._writer.add_connection(
            topic, kind, typestore=typestore(), offered_qos_profiles=[qos]
        )

    def write_raw(self, message: RawMessage) -> None:
        """Append a message that is CDR already, to a topic of `add_topic`."""
        self._writer.write(self._connections[message.topic], message.stamp_ns, message.data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


def is_our_bag(folder: Path) -> bool:
    """Whether `folder` holds a bag of `BagWriter` and nothing else."""
    if not {item.name for item in folder.iterdir()} <= {"metadata.yaml", f"{folder.name}.mcap"}:
        return False
    try:
        with BagReader(folder) as bag:
            return MADE_BY in bag.notes
    except BagError:
        return False


# What rosbags raises, besides its own errors, on bytes that are not what they should be. `hypothesis`
# flips and cuts bytes in the tests to see that nothing else comes out.
_DAMAGE = (
    ReaderError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    ZstdError,
    struct.error,
)


class BagReader:
    """Reads any rosbag2 bag: a folder with metadata.yaml, or a single .mcap file.

    Use as a context manager. Messages come as raw CDR in the order of their log time.
    """

    topics: dict[str, Topic]
    notes: dict[str, str]  # custom data of the metadata
    start_ns: int  # log time of the first message
    end_ns: int  # log time of the last

    def __init__(self, path: Path) -> None:
        self._path = path
        self._types = typestore()

    def __enter__(self) -> Self:
        _check_layout(self._path)
        try:
            self._reader = Reader(self._path)
            self._reader.open()
        except _DAMAGE as error:
            raise self._damaged(error) from error
        self._connections = {connection.topic: connection for connection in self._reader.connections}
        self.topics = {name: _topic(connection) for name, connection in self._connections.items()}
        self.notes = dict(self._reader.storage.metadata.custom or {})
        self.start_ns, self.end_ns = self._reader.start_time, self._reader.end_time - 1
        if not self._reader.message_count:
            self._reader.close()
            raise BagError(f"bag {self._path} holds no message; record or convert it again")
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def messages(
        self,
        topics: Collection[str] = (),
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[RawMessage]:
        """Messages with start_ns <= log time < stop_ns, of `topics` or of all.

        Raises:
            BagError: an unknown topic, or damage found on the way.
        """
        for name in topics:
            if name not in self.topics:
                raise BagError(
                    f"bag {self._path} has no topic {name}, it has {', '.join(sorted(self.topics))}"
                )
        chosen = [self._connections[name] for name in topics]
        try:
            for connection, stamp_ns, data in self._reader.messages(chosen, start_ns, stop_ns):
                yield RawMessage(connection.topic, stamp_ns, data)
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def decode(self, message: RawMessage) -> Any:
        """The message as an object; types that neither Jazzy nor we have are taken from the bag.

        Raises:
            BagError: bytes that are no message of the topic's type, or a type without definition.
        """
        connection = self._connections[message.topic]
        if connection.msgtype not in self._types.types:
            self._learn(connection)
        try:
            return self._types.deserialize_cdr(message.data, connection.msgtype)
        except (SerdeError, *_DAMAGE) as error:
            raise BagError(
                f"bag {self._path}: the message on {message.topic} at {message.stamp_ns} ns is no "
                f"{connection.msgtype} ({len(message.data)} bytes: {error or type(error).__name__})"
            ) from error

    def _learn(self, connection: Connection) -> None:
        if connection.msgdef.format is not MessageDefinitionFormat.MSG:
            raise BagError(
                f"bag {self._path}: nobody defines {connection.msgtype} of topic {connection.topic}; "
                "record with the message definitions in the bag"
            )
        try:
            learned = get_types_from_msg(connection.msgdef.data, connection.msgtype)
        except TypesysError as error:
            raise BagError(f"bag {self._path}: bad definition of {connection.msgtype}: {error}") from error
        known = self._types.types
        self._types = new_typestore()  # the shared one must not depend on which bags were opened
        self._types.register({name: fields for name, fields in learned.items() if name not in known})

    def _damaged(self, error: BaseException) -> BagError:
        return BagError(
            f"bag {self._path} is damaged or not a rosbag2 bag ({error or type(error).__name__}); "
            "wanted MCAP or sqlite3 as `ros2 bag record` writes it. If the recorder was killed, try "
            "`ros2 bag reindex` or `mcap recover`, else record it again"
        )


def _topic(connection: Connection) -> Topic:
    qos = connection.ext.offered_qos_profiles if isinstance(connection.ext, ConnectionExtRosbag2) else []
    return Topic(connection.topic, connection.msgtype, connection.msgcount, tuple(qos))


def _check_layout(path: Path) -> None:
    if not path.exists():
        raise BagError(f"there is no bag at {path}; give the folder that holds metadata.yaml")
    if path.is_dir() and not (path / "metadata.yaml").exists():
        recordings = sorted(item.name for item in path.iterdir() if item.suffix in (".mcap", ".db3"))
        if recordings:
            raise BagError(
                f"bag {path} has no metadata.yaml, so its recorder was probably killed; "
                f"give the file itself ({path / recordings[0]}) or run `ros2 bag reindex {path}`"
            )
        raise BagError(
            f"{path} is no bag: it has neither metadata.yaml nor an .mcap or .db3 file; "
            "give the folder that `ros2 bag record` or `sparseoccvla bag` wrote"
        )
    if path.is_file() and path.suffix not in (".mcap", ".db3"):
        raise BagError(f"{path} is no bag: wanted a folder with metadata.yaml, or a file .mcap or .db3")
