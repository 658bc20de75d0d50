"""KafkaBus, with a broker of Kafka."""

from __future__ import annotations

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.bridges.kafka_server import KafkaServer


async def test_broker_takes_records(kafka: KafkaServer) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address())
    await admin.start()
    await admin.create_topics([NewTopic("probe", 3, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address(), enable_idempotence=True)
    await producer.start()
    assert (await producer.send_and_wait("probe", b"v", key=b"k")).offset == 0
    await producer.stop()
