"""Engines as actors of a Ray cluster: on this machine, or on many.

    with Cluster.join(replicas=2) as cluster:
        worker = Worker(factory, arguments, start=cluster.start, replicas=(2, 2))

Ray places each actor on a device, or a share of one, says when it died, and carries bytes. Queue,
deadlines and replacement are the worker's (`playground.serving.replica`), the same as without Ray:
they need what Ray Serve's router does not offer, namely an announced place in line, a robot's job
at a running one's next event, a deadline for each event, and weights before caches in choosing a
replica. So this builds on Ray's actors, and Serve is not installed.

An actor holds an engine at the end of a socket pair. What the page sends goes in by a method's
calls, in order; what the engine says comes back as the stream of another one. Ray pickles both, as
bytes; a cluster trusts whoever may join it.

Ray is imported by `Cluster` alone (requirements-ray.txt).
"""

import contextlib
import faulthandler
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from playground.serving import logs
from playground.serving.engine import Engine
from playground.serving.messages import Message
from playground.serving.process import Inbox, Lost, connection_pair

_PIECE = 1 << 20  # bytes of the stream at once
_OBJECT_STORE = 512 << 20  # bytes on this machine; what passes is read at once
_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_FRACTION = 0.92  # of a GPU, as playground.checkpoints.memory_plan
_LEAVE_S = 10.0  # for Ray to notice that an actor was killed


class Cluster:
    """The Ray cluster that this program has joined. share: the part of a GPU, or of a core where
    the cluster has no GPU, that each engine gets."""

    def __init__(self, ray: Any, share: float):
        self._ray = ray
        gpus = ray.cluster_resources().get("GPU", 0)
        # A cluster that grows with its load may have none yet.
        on_gpu = bool(gpus) or os.environ.get("JAX_PLATFORMS", "") in ("cuda", "gpu")
        self._resources = {"num_gpus": share, "num_cpus": 0} if on_gpu else {"num_cpus": share}
        self._environment = {_MEMORY: f"{_FRACTION * share:.3f}"} if on_gpu and share < 1 else {}
        # A thread for each method, so that none waits for another's end.
        methods = {"inbox": Replica.send, "events": Replica.events, "watch": Replica.show_stacks}
        for group, method in methods.items():
            ray.method(concurrency_group=group)(method)
        self._actor = ray.remote(concurrency_groups=dict.fromkeys(methods, 1))(Replica)
        self._started: weakref.WeakSet[Actor] = weakref.WeakSet()  # a thread keeps what streams

    @classmethod
    def join(cls, replicas: int, share: float = 1.0) -> "Cluster":
        """The cluster of RAY_ADDRESS, or one on this machine that ends with this program, with a
        core for each of so many replicas. Raises ConnectionError where there is none."""
        # Else a thread that still asks Ray after `close` would join once more, for good.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
        os.environ.setdefault("RAY_worker_niceness", "0")  # by Ray's 15 all else goes first
        common = {"log_to_driver": True, "logging_level": "warning", "configure_logging": False}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**common)
        else:
            cores = max(os.cpu_count() or 1, replicas)
            ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                **common,
            )
        return cls(ray, share)

    def start(self, wake: socket.socket) -> "Actor":
        """An engine, as `playground.serving.worker.Worker` starts them."""
        handle = self._actor.options(**self._resources).remote(self._environment)
        actor = Actor(self._ray, handle, wake)
        self._started.add(actor)
        return actor

    def close(self) -> None:
        """Ends what was started and leaves the cluster; one on this machine ends."""
        left, until = list(self._started), time.monotonic() + _LEAVE_S
        for actor in left:
            actor.end()
        for actor in left:
            actor.join(until - time.monotonic())
        self._ray.shutdown()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Actor:
    """A `playground.serving.process.Link` to an engine in an actor."""

    pid = None

    def __init__(self, ray: Any, handle: Any, wake: socket.socket):
        self._ray, self._handle = ray, handle
        self.begun = False
        self._reason = "it ended"
        ours, self._theirs = connection_pair()
        self._inbox = Inbox(ours, wake)
        stream = handle.events.remote()
        self._thread = threading.Thread(target=self._pump, args=(stream,), daemon=True)
        self._thread.start()

    def _pump(self, stream: Iterator) -> None:
        """Brings what the engine says to our socket, until it has said all."""
        try:
            for piece in stream:
                self._theirs.sendall(self._ray.get(piece))
                self.begun = True
        except OSError:
            pass  # nobody reads any more
        except Exception as error:  # Ray's own, and what it raises once the cluster is left
            self._reason = f"Ray lost it: {(str(error) or type(error).__name__).splitlines()[0]}"
        finally:
            self._theirs.close()

    def join(self, timeout: float) -> None:
        """Waits until nothing more comes, for so many seconds at most."""
        self._thread.join(max(timeout, 0.0))

    def send(self, frame: bytes) -> None:
        """What an engine that is gone does not hear, its stream's end tells."""
        self._handle.send.remote(frame)

    def receive(self, until: float) -> Message | None:
        try:
            return self._inbox.receive(until)
        except (EOFError, OSError) as error:
            raise Lost(self._reason) from error

    def show_stacks(self) -> None:
        self._handle.show_stacks.remote()
        time.sleep(0.2)

    def end(self) -> None:
        self._ray.kill(self._handle)
        self._inbox.close()


class Replica:
    """The actor: an engine, and both ends of its connection. environment: variables to set before
    JAX is imported, unless they are."""

    def __init__(self, environment: dict[str, str]):
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        logs.configure_process()
        self._ours, theirs = socket.socketpair()
        threading.Thread(target=self._run, args=(theirs,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        """What the engine raises ends the stream, and so is noticed."""
        with connection:
            try:
                Engine(connection).run()
            finally:  # closing says nothing to the other end while a thread of the engine reads
                connection.shutdown(socket.SHUT_WR)

    def send(self, piece: bytes) -> None:
        """Bytes for the engine."""
        with contextlib.suppress(OSError):
            self._ours.sendall(piece)

    def events(self):
        """The bytes that the engine says, until its end; at once an empty piece: it has a place."""
        yield b""
        while piece := self._ours.recv(_PIECE):
            yield piece

    def show_stacks(self) -> None:
        """Into this actor's log, of every thread."""
        faulthandler.dump_traceback(all_threads=True)
