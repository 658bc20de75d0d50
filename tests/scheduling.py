"""Which process runs which tests: each file one, and those of a bus of bridges one."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["pytest_xdist_make_scheduler"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one worker, and all that needs Kafka or RabbitMQ: they start slowly."""
    from xdist.scheduler import LoadFileScheduling

    class OneWorkerEach(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/bridges/"):
                for bus in ("kafka", "amqp"):
                    if bus in nodeid:
                        return bus
            return str(super()._split_scope(nodeid))

        def remove_node(self, node: Any) -> str | None:
            """Give the other workers what a crashed one had left, without the test that crashed it.

            That test would crash the next worker, too. xdist's own method also hands out files
            whose tests have all run. Then no worker is told to stop, and the run hangs at its end.
            """
            ended: str | None = None
            for scope, unit in self.assigned_work.pop(node).items():
                left = [test for test, done in unit.items() if not done]
                if left and ended is None:
                    ended = left.pop(0)  # a worker runs them in this order
                if left:
                    self.workqueue[scope] = dict.fromkeys(left, False)
            for other in self.assigned_work:
                if ended is not None:
                    self._reschedule(other)
            return ended

    return OneWorkerEach(config, log)
