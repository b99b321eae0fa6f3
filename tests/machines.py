"""Two machines as two network namespaces, joined by a cable of a given bandwidth; `torchrun` started in both."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

from rerun import ROOT

ADDRESSES = ("192.0.2.1", "192.0.2.2")  # a range kept for examples; nothing of it leaves the two namespaces
PORT = 29500  # of the first namespace, where nobody else is
STATIC, C10D = "--node-rank and --master-addr", "--rdzv-backend=c10d"
TIMEOUT_S = 240
MBIT_PER_S = 200


def meeting(rendezvous, number, more=""):
    """The words of torchrun for machine `number` that say where all meet."""
    if rendezvous == STATIC:
        return f"--node-rank={number} --master-addr={ADDRESSES[0]} --master-port={PORT}"
    words = f"--rdzv-backend=c10d --rdzv-endpoint={ADDRESSES[0]}:{PORT} --rdzv-id=lesson"
    # Whose own name leads to 127.0.0.1 does not know its address: neither as the endpoint that it hosts nor for others.
    return f"{words} --local-addr={ADDRESSES[number]} --rdzv-conf=is_host={int(number == 0)}{more}"


class Machines:
    """Two of them, made by `with`. At its end nothing of them is left: no process, no namespace, no cable."""

    def __init__(self, folder):
        self.names = [f"lesson-{os.getpid()}-{number}" for number in (0, 1)]
        self.cables = [f"l{os.getpid()}-{number}" for number in (0, 1)]
        self.hosts = folder / "hosts"  # the machines' own names lead to themselves, as they often do at home
        self.hosts.write_text("127.0.0.1 localhost laptop\n")
        self._running = []

    @staticmethod
    def lacks():
        """What this system needs to make them, in words, or ""."""
        if sys.platform != "linux" or os.geteuid() != 0:
            return "needs Linux and root"
        missing = [name for name in ("ip", "tc", "unshare") if not shutil.which(name)]
        return f"needs {', '.join(missing)}" if missing else ""

    def __enter__(self):
        try:
            for name in self.names:
                said("ip", "netns", "add", name)
                said("ip", "-n", name, "link", "set", "lo", "up")
            first, second = self.cables
            said(
                "ip", "-n", self.names[0], "link", "add", first, "type", "veth", "peer", second, "netns", self.names[1]
            )
            for name, cable, address in zip(self.names, self.cables, ADDRESSES, strict=True):
                said("ip", "-n", name, "address", "add", f"{address}/24", "dev", cable)
                said("ip", "-n", name, "link", "set", cable, "up")
                shape = ("rate", f"{MBIT_PER_S}mbit", "burst", "64kb", "latency", "400ms")
                said("tc", "-n", name, "qdisc", "add", "dev", cable, "root", "tbf", *shape)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.end()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def start(self, number, words, *script):
        """Start `torchrun` with `words` on a machine."""
        inside = f"hostname laptop && mount --bind {self.hosts} /etc/hosts && exec "
        torchrun = f"{sys.executable} -m torch.distributed.run --nproc-per-node=2 {words} {' '.join(map(str, script))}"
        command = ["ip", "netns", "exec", self.names[number], "unshare", "--uts", "--mount", "sh", "-c"]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
        }
        environment.pop("GLOO_SOCKET_IFNAME", None)
        pipe = subprocess.PIPE
        process = subprocess.Popen([*command, inside + torchrun], stdout=pipe, stderr=pipe, text=True, env=environment)
        self._running.append(process)
        return process

    def run(self, rendezvous, *script, words="--nnodes=2"):
        """Start `torchrun` on both and wait; (exit status, stdout, stderr) of each."""
        both = [self.start(n, f"{words} {meeting(rendezvous, n)}", *script) for n in (0, 1)]
        try:
            texts = [process.communicate(timeout=TIMEOUT_S) for process in both]
            assert self.pids() == [[], []], texts
        finally:
            self.end()
        return [(process.returncode, *text) for process, text in zip(both, texts, strict=True)]

    def pids(self):
        """The processes of each machine."""
        return [list(map(int, said("ip", "netns", "pids", name).split())) for name in self.names]

    def cut(self, state="down"):
        """Let nothing pass the cable, as if the second machine had lost its power; or join it again: "up"."""
        said("ip", "-n", self.names[1], "link", "set", self.cables[1], state)

    def kill(self, number):
        """Take all processes of a machine at once, the agent of torchrun too."""
        for pid in self.pids()[number]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self):
        """Kill what still runs on them."""
        for number, name in enumerate(self.names):
            if os.path.exists(f"/run/netns/{name}"):
                self.kill(number)
        for process in self._running:
            process.kill()
            process.communicate()
        self._running.clear()

    def shapers(self):
        """What the shaper at each end of the cable counted: "bytes" sent, and "overlimits": times that it held back."""
        found = []
        for name, cable in zip(self.names, self.cables, strict=True):
            [shaper] = json.loads(said("tc", "-n", name, "-s", "-j", "qdisc", "show", "dev", cable))
            assert shaper["kind"] == "tbf"
            found.append(shaper)
        return found


def said(*command):
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
