"""What Gradio keeps of each session, held to what is needed.

By itself (6.31) it keeps the last inputs and outputs of each session, for links that bring them
back, which this page does not serve; and what a session was sent until it is read, however much
that is, for the last 2,000 sessions.
"""

import asyncio
import collections

import orjson
from gradio.blocks import Blocks
from gradio.routes import App
from gradio.server_messages import EventMessage, ProcessCompletedMessage
from gradio.state_holder import SessionState, StateHolder
from gradio.utils import LRUCache

from playground.ui.guard.present import Present

MAX_UNREAD = 64 << 20  # bytes that all sessions' messages take until they are read
MAX_SESSIONS = 1000  # with messages to come, or read by nobody
# As values of Python, a message takes some four times the memory of its JSON.
_COST = 4
_UNSENDABLE = "This answer holds text that cannot be sent."
_LOST = "Too much lay unread here, and is no longer kept. Please ask again."


def hold(app: App, page: Blocks) -> None:
    """To be called once, before the first session."""
    app.state_holder = Sessions()
    app.state_holder.set_blocks(page)
    page._queue.pending_messages_per_session = Mailboxes(page._queue.pending_event_ids_session)


# --- inputs and outputs -------------------------------------------------------------------------


class Sessions(StateHolder):
    """Keeps what `gr.State` holds, and how components were updated, but no values. Of too many
    sessions the one goes whose page is not open, and that was used longest ago: one visitor's many
    sessions push out nobody who is here."""

    def __init__(self):
        super().__init__()
        self.open_pages = Present()

    def update(self, session_id: str) -> None:
        with self.lock:
            if session_id in self.session_data:
                self.session_data.move_to_end(session_id)
            if len(self.session_data) > self.capacity:
                *older, _ = self.session_data
                gone = next((one for one in older if one not in self.open_pages), older[0])
                del self.session_data[gone]
                self.time_last_used.pop(gone, None)

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = _Session(self.blocks)
        return super().__getitem__(session_id)


class _Session(SessionState):
    def __init__(self, blocks: Blocks):
        super().__init__(blocks)
        self.config_values = {}

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.config_values.clear()

    def _update_config(self, key):
        pass

    def _update_value_in_config(self, key, value):
        pass


# --- messages -----------------------------------------------------------------------------------


class Mailbox(asyncio.Queue):
    """Of one session. `size`: bytes of memory that its messages take; `readers`: who waits for the
    next one now. Used on the event loop alone."""

    def __init__(self, mailboxes: "Mailboxes"):
        super().__init__()
        self._mailboxes = mailboxes
        self._sizes: collections.deque[int] = collections.deque()
        self.size = self.readers = 0

    def put_nowait(self, message: EventMessage) -> None:
        output = getattr(message, "output", None)  # of the others, none is large
        try:
            size = _COST * len(orjson.dumps(output, default=str))
        except TypeError:  # half of a character, from wherever: Gradio could not send it either
            message, size = _failed(message, _UNSENDABLE), 0
        super().put_nowait(message)
        self._sizes.append(size)
        self.size += size
        self._mailboxes.make_room()

    def get_nowait(self) -> EventMessage:
        message = super().get_nowait()
        self.size -= self._sizes.popleft()
        return message

    async def get(self) -> EventMessage:
        self.readers += 1
        try:
            return await super().get()
        finally:
            self.readers -= 1

    def give_up(self) -> None:
        """Nobody has read this for too long: each answer gives way to a word of that."""
        lost = [self.get_nowait() for _ in range(self.qsize())]
        for message in lost:
            if isinstance(message, ProcessCompletedMessage):
                self.put_nowait(_failed(message, _LOST))


def _failed(message: EventMessage, why: str) -> ProcessCompletedMessage:
    """What takes the place of an answer."""
    failed = ProcessCompletedMessage(output={"error": why}, success=False)
    failed.event_id = message.event_id
    return failed


class Mailboxes(LRUCache):
    """By session, what takes the place of Gradio's queues of messages. Where all that lies unread
    exceeds its bound, the session with most of it gives way; of too many sessions, the one that
    nobody reads and that was used longest ago. event_ids: Gradio's, of each session's calls."""

    def __init__(
        self,
        event_ids: dict[str, set[str]],
        most: int = MAX_UNREAD,
        sessions: int = MAX_SESSIONS,
    ):
        super().__init__(sessions)
        self._event_ids, self._most = event_ids, most

    def __setitem__(self, session: str, queue: asyncio.Queue) -> None:
        if session not in self and len(self) >= self.max_size:
            self._forget()
        super().__setitem__(session, Mailbox(self))

    def __getitem__(self, session: str) -> Mailbox:
        """Of a session that is forgotten, one that nobody reads: its calls may be running yet."""
        if session not in self:
            return Mailbox(self)
        self.move_to_end(session)
        return super().__getitem__(session)

    def make_room(self) -> None:
        if sum(mailbox.size for mailbox in self.values()) > self._most:
            max(self.values(), key=lambda mailbox: mailbox.size).give_up()

    def _forget(self) -> None:
        unread = (session for session, mailbox in self.items() if not mailbox.readers)
        session = next(unread, next(iter(self)))
        del self[session]
        self._event_ids.pop(session, None)
