"""Stands for a robot's own policy server: openpi's protocol, with openpi's own message code, in its
environment (see `stock`). Imports nothing of this project; prints its port.

Actions [5, 14] are the state plus the step; a request without a state breaks, as openpi's does: a
traceback as text, then 1011.
"""

import asyncio
import traceback

import numpy as np
import websockets.asyncio.server
from openpi_client import msgpack_numpy

HORIZON = 5


async def answer(connection):
    packer = msgpack_numpy.Packer()
    await connection.send(packer.pack({"reset_pose": [0.0, -1.5]}))
    while True:
        request = msgpack_numpy.unpackb(await connection.recv())
        if request.get("endpoint") == "reset":
            await connection.send("reset successful")
            continue
        try:
            actions = request["state"] + np.arange(HORIZON)[:, None]
        except Exception:
            await connection.send(traceback.format_exc())
            await connection.close(
                1011, "Internal server error. Traceback included in previous frame."
            )
            raise
        await connection.send(packer.pack({"actions": actions, "policy_timing": {"infer_ms": 1.5}}))


def check(connection, request):
    if request.path == "/healthz":
        return connection.respond(200, "OK\n")
    if request.headers.get("Authorization") == "Api-Key wrong":
        return connection.respond(401, "not with this key\n")
    return None


async def main():
    server = websockets.asyncio.server.serve(
        answer, "127.0.0.1", 0, compression=None, max_size=None, process_request=check
    )
    async with server as running:
        print(running.sockets[0].getsockname()[1], flush=True)
        await running.serve_forever()


asyncio.run(main())
