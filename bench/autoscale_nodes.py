"""Rented nodes of one GPU each: every second that one is paid for is in exactly one phase."""

from collections.abc import Awaitable, Callable
from typing import Literal, get_args

from autoscale_day import Nature, Supposed
from autoscale_timeline import Due, Timeline

Phase = Literal["starting", "idle", "loading", "training", "saving", "empty"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Node:
    """One machine from its order to its return. `doomed`: its owner has said that it will be taken away."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.phase: Phase = "starting"
        self.since = began
        self.doomed = False
        self.returned = False
        self.expiry: Due | None = None


class Nodes:
    """Rents nodes, keeps empty ones for a while, and takes them away as spot markets do."""

    def __init__(self, timeline: Timeline, supposed: Supposed, nature: Nature) -> None:
        self._timeline = timeline
        self._supposed = supposed
        self._nature = nature
        self._rented: list[Node] = []
        self.paid_s = 0.0
        self.spent_s: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self.most = 0

    def watch(self, notice: Callable[[Node], Awaitable[None]], loss: Callable[[Node], Awaitable[None]]) -> None:
        """Whom to tell that a node will be taken away, and that it is gone without a word."""
        self._notice, self._loss = notice, loss

    def take(self) -> tuple[Node, float]:
        """A node for a pod, and the seconds until the pod's worker is ready: an empty node, or else a new one."""
        for node in self._rented:
            if node.phase == "empty":
                if node.expiry is not None:
                    node.expiry.call_off()
                self.enter(node, "starting")
                return node, self._supposed.pod_s
        node = Node(self._timeline.now)
        self._rented.append(node)
        self.most = max(self.most, len(self._rented))
        start_s = self._nature.node_start_s()
        interruption = self._nature.interruption()
        if interruption is not None:
            after_s, noticed = interruption
            self._timeline.after(start_s + after_s, lambda: self._interrupt(node, noticed))
        return node, start_s + self._supposed.pod_s

    def enter(self, node: Node, phase: Phase) -> None:
        self.spent_s[node.phase] += self._timeline.now - node.since
        node.phase, node.since = phase, self._timeline.now

    def leave(self, node: Node) -> None:
        """Its pod is gone: it is kept empty for a while, in case another comes."""
        if node.returned:
            return
        if node.doomed:
            self.give_back(node)
            return
        self.enter(node, "empty")

        async def expire() -> None:
            self.give_back(node)

        node.expiry = self._timeline.after(self._supposed.empty_s, expire)

    def give_back(self, node: Node) -> None:
        """Nothing is paid from here on."""
        self.enter(node, node.phase)
        self._rented.remove(node)
        node.returned = True
        self.paid_s += self._timeline.now - node.began

    def close(self) -> None:
        """The books are closed: what is still rented is paid for up to now."""
        for node in list(self._rented):
            self.give_back(node)

    async def _interrupt(self, node: Node, noticed: bool) -> None:
        if node.returned:
            return
        if node.phase == "empty":
            if node.expiry is not None:
                node.expiry.call_off()
            self.give_back(node)
        elif noticed:
            node.doomed = True
            await self._notice(node)
        else:
            self.give_back(node)
            await self._loss(node)
