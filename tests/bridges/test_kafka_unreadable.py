"""What aiokafka cannot read, or only with care, stops neither the bridge nor other partitions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record import default_records

from tests.bridges.kafka_server import KafkaServer
from tests.bridges.kafka_service import Taken, bridge_to, service_on
from tests.bridges.sides import opened
from tests.support import until


class Name(str):
    """A header's name as a service in another language may write it."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        return super().encode("latin-1")


def corrupt(server: KafkaServer, topic: str, text: bytes) -> None:
    """Change one byte of a record on the broker's disk, as a broken disk does."""
    (log,) = (server.folder / "data").glob(f"{topic}-*/00000000000000000000.log")
    data = log.read_bytes()
    with Path(log).open("r+b") as file:
        file.seek(data.index(text))
        file.write(b"?")


async def test_header_names_may_be_any_bytes(
    kafka: KafkaServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One such record raised an error at each fetch, and the bridge read nothing any more."""
    # The one in Python lets `Name` encode itself
    for module in ("producer", "message_accumulator"):
        where = f"aiokafka.producer.{module}.DefaultRecordBatchBuilder"
        monkeypatch.setattr(where, default_records._DefaultRecordBatchBuilderPy)
    bridge = bridge_to(kafka, prefix=prefix, partitions=1)
    async with opened(bridge) as bus, service_on(kafka, prefix) as service:
        headers = [(Name("größe"), b"1"), ("Ws-Frame", b"binary")]
        sent = [
            await service.producer.send(f"{prefix}.recv", b"%d" % n, b"orders.ann", headers=each)
            for n, each in enumerate(([], headers, [("a", b"b")]))  # in one batch
        ]
        await asyncio.gather(*sent)
        taken = Taken(bus)
        records = await taken.wait(3)
        assert taken.payloads == [b"0", b"1", b"2"]
        assert records[1].headers == {"gr\\xf6\\xdfe": "1", "Ws-Frame": "binary"}
        assert records[2].headers == {"a": "b"}
        # It stays what it is when it is set aside
        await bus.set_aside(records[1], "why")
        (dead,) = await service.read("dead", 1)
        assert dict(dead.headers)["Ws-Frame"] == b"binary"


async def test_corrupt_batch_stops_its_partition_alone(
    kafka: KafkaServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole group read nothing any more, and rebalanced every few seconds."""
    bridge = bridge_to(kafka, prefix=prefix, partitions=1)
    async with opened(bridge) as bus, service_on(kafka, prefix) as service:
        for text in (b"good", b"broken", b"behind"):
            await service.produce("orders.ann", text)
        for n in range(20):
            await service.produce("orders.room", b"%d" % n, to="topic")
        corrupt(kafka, f"{prefix}.recv", b"broken")
        taken = Taken(bus)
        await taken.wait(21)
        await until(lambda: "cannot read" in caplog.text)
        assert bus.trouble == f"cannot read {prefix}.recv, partition 0"
        await service.produce("orders.room", b"last", to="topic")
        await taken.wait(22)
        assert {*taken.payloads} == {b"good", b"last", *(b"%d" % n for n in range(20))}
        assert len(taken.payloads) == 22  # nothing came twice: no restart
        assert f"cannot read topic {prefix}.recv, partition 0, at offset 1: Corrupt" in caplog.text


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy"])
async def test_compressed_batches_are_read(kafka: KafkaServer, prefix: str, codec: str) -> None:
    """Without cramjam one of them stopped the bridge."""
    async with opened(bridge_to(kafka, prefix=prefix)) as bus:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.address(), compression_type=codec)
        async with producer:
            await producer.send_and_wait(f"{prefix}.recv", b"x" * 1000, b"orders.ann")
        assert (await Taken(bus).wait(1))[0].payload == b"x" * 1000


async def test_compression_that_cannot_be_read_is_told_and_read_once_it_can(
    kafka: KafkaServer,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsgateway.bridges.kafka.consumer.PARTITION_PAUSE", 0.5)
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.address(), compression_type="lz4")
        async with producer:
            await producer.send_and_wait(f"{prefix}.recv", b"1", b"orders.ann")
        with monkeypatch.context() as patch:
            patch.setattr("aiokafka.codec.has_lz4", lambda: False)
            taken = Taken(bus)
            await until(lambda: "install cramjam beside the bridge" in caplog.text)
            await service.produce("orders.room", b"2", to="topic")
            assert (await taken.wait(1))[0].payload == b"2"
        assert (await taken.wait(2))[1].payload == b"1"
