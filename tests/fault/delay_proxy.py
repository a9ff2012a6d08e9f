"""A TCP proxy that delays what it carries, stops one direction for a while, and breaks connections: all from a seed.

    with DelayProxy(target=("127.0.0.1", 8002), seed=1) as proxy:
        connect to proxy.address

Bytes are never reordered, changed or lost while a connection lives, as TCP promises.
"""

import asyncio
import collections
import random
import threading


class DelayProxy:
    def __init__(self, target, seed, max_delay_seconds=0.03, stall_seconds=(0.3, 3.0), mean_stall_gap_seconds=4,
                 mean_reset_gap_seconds=8):
        self.address = None
        self.counts = collections.Counter()
        self._target = target
        self._rng = random.Random(seed)
        self._max_delay = max_delay_seconds
        self._stall = stall_seconds
        self._stall_gap = mean_stall_gap_seconds
        self._reset_gap = mean_reset_gap_seconds
        self._faults = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self):
        self._thread.start()
        start = asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.address = self._server.sockets[0].getsockname()
        return self

    def __exit__(self, exc_type, exc, tb):
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        return False

    def end_faults(self):
        """From now on a plain proxy."""
        self._faults = False

    async def _close(self):
        self._server.close()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader, writer):
        try:
            to_reader, to_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        writers = (writer, to_writer)
        tasks = [asyncio.ensure_future(self._carry("to the router", reader, to_writer)),
                 asyncio.ensure_future(self._carry("to the worker", to_reader, writer)),
                 asyncio.ensure_future(self._break(writers))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for each in writers:
                each.transport.abort()

    async def _carry(self, direction, reader, writer):
        loop = asyncio.get_running_loop()
        next_stall = loop.time() + self._rng.expovariate(1 / self._stall_gap)
        while data := await reader.read(1 << 16):
            if self._faults:
                self.counts["delayed pieces"] += 1
                await asyncio.sleep(self._rng.uniform(0, self._max_delay))
                if loop.time() > next_stall:
                    self.counts[f"one direction stopped for {self._stall[0]}-{self._stall[1]} s"] += 1
                    await asyncio.sleep(self._rng.uniform(*self._stall))
                    next_stall = loop.time() + self._rng.expovariate(1 / self._stall_gap)
            writer.write(data)
            await writer.drain()

    async def _break(self, writers):
        await asyncio.sleep(self._rng.expovariate(1 / self._reset_gap))
        while not self._faults:
            await asyncio.sleep(3600)
        self.counts["connections reset"] += 1
