"""Bridges: services that live on Kafka or RabbitMQ take part."""
