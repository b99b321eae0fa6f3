"""Messages over `torch.distributed` that go on while a rank does something else: each waits in a thread."""

import time
from concurrent.futures import ThreadPoolExecutor, wait

from ..errors import RankFailed
from ..trace import now_s
from .call import Call

NAP_S = 2e-4  # between two looks at who sends: about two messages over gloo


class TorchMail:
    """All messages of one rank that were begun and not awaited yet.

    gloo tells only who waits that a message has come. So each waits in a thread, one for each rank and direction, which
    keeps them in order. What a rank hears from another one comes in order too, whatever it is: before anything else is
    heard from that rank, the receives that were begun end (`settle`).

    Args:
        transport: the `TorchTransport` that messages go through.
    """

    def __init__(self, transport):
        self._transport, self._threads, self._last_receive = transport, {}, {}

    def _in_thread(self, peer, function, *args):
        if (peer, function.__name__) not in self._threads:
            self._threads[peer, function.__name__] = ThreadPoolExecutor(1, thread_name_prefix="messages")
        return self._threads[peer, function.__name__].submit(function, *args)

    def start_send(self, tensor, dst):
        """Begin to give a contiguous tensor to rank `dst`; a future."""
        return self._in_thread(dst, self._transport.wait_all, self._transport.post_message(tensor, dst), dst)

    def start_recv(self, tensor, src):
        """Begin to fill a contiguous tensor from rank `src`; a future of the time at which that rank was ready (s)."""
        self._last_receive[src] = self._in_thread(src, self._transport.take_message, tensor, src)
        return self._last_receive[src]

    def settle(self, ranks):
        """Wait for the receives from `ranks`. What went wrong with one is raised to whoever waits for it."""
        wait([self._last_receive.pop(rank) for rank in ranks if rank in self._last_receive])

    def first_sender(self, tensor):
        """Wait until some rank sends to this one; which."""
        transport, start_s, call = self._transport, now_s(), str(Call("recv", tensor, "src=None"))
        transport.check_in_step()
        self.settle(list(self._last_receive))
        others = [(transport.rank + k) % transport.world_size for k in range(1, transport.world_size)]
        while True:
            heard = {src: transport.heard_so_far(src) for src in others}
            for src, text in heard.items():
                if text.startswith("send("):
                    return src
            if all(text.endswith(")") for text in heard.values()):  # they are all in something else, and wait there
                transport.disagree({transport.rank: call, **heard})
            if now_s() - start_s > transport.timeout_s:
                reason = f"no rank sent to rank {transport.rank} within timeout_s={transport.timeout_s:g} s: in {call}"
                raise RankFailed(None, reason)
            time.sleep(NAP_S)

    def close(self):
        """End the threads, when nothing is under way."""
        for thread in self._threads.values():
            thread.shutdown()
