"""openpi's own client, in an environment of its own (it needs numpy below 2): imports nothing of
this project. Reads observations from stdin and writes what came back to stdout, each as an 8-byte
length and an npz. Keys joined by "/" are nested maps.

    argv    url, and the horizon of an ActionChunkBroker, "" for the bare client
    first   what the server said on connecting, as JSON under "metadata"
"""

import io
import json
import struct
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def nested(arrays):
    found = {}
    for key, value in arrays.items():
        value = value.item() if value.dtype.kind == "U" else value
        # DROID's and LIBERO's keys hold the "/" themselves.
        outer, _, inner = key.partition("/") if key.startswith("images/") else (key, "", "")
        if inner:
            found.setdefault(outer, {})[inner] = value
        else:
            found[key] = value
    return found


def flat(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}/") if nested else {f"{prefix}{key}": np.asarray(value)}
    return found


def write(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    sys.stdout.buffer.write(struct.pack("<Q", file.tell()) + file.getvalue())
    sys.stdout.buffer.flush()


def main():
    url, horizon = sys.argv[1:]
    client = WebsocketClientPolicy(url)
    write({"metadata": np.array(json.dumps(client.get_server_metadata()))})
    policy = ActionChunkBroker(client, int(horizon)) if horizon else client
    while size := sys.stdin.buffer.read(8):
        (count,) = struct.unpack("<Q", size)
        observation = nested(dict(np.load(io.BytesIO(sys.stdin.buffer.read(count)))))
        try:
            write(flat(policy.infer(observation)))
        except RuntimeError as error:
            write({"error": np.array(str(error))})


main()
