"""The admin's streams on a cluster of three, one of which is killed."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from tests.support import wait_for
from wsgateway.broker.cluster import Cluster


def text_of(client: Client, page: str) -> str:
    """Return what a page of the admin says, its markup taken out."""
    content = client.get(f"/admin/wsgateway/{page}").content.decode()
    return " ".join(re.sub(r"<[^>]*>", " ", content.partition('id="content-main"')[2]).split())


@pytest.mark.timeout(180)
@pytest.mark.django_db
def test_replica_that_is_away_is_named_until_it_is_back(
    settings: Any, nats_cluster: Cluster, prefix: str, client: Client
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = ",".join(nats_cluster.urls)
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_REPLICAS = 3
    settings.WSGATEWAY_SERVICES = ["orders"]
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    stream = f"streamentry/{prefix.upper()}_RECV/change/"
    healthy = r"Replicas: 3 .* (\S+) leader 0 (\S+) follower \d+ (\S+) follower"
    match = wait_for(lambda: re.search(healthy, text_of(client, stream)), 60)
    assert {*match.groups()} == {node.name for node in nats_cluster}
    lost = match[2]
    nats_cluster[lost].kill()
    try:
        wait_for(lambda: f"{lost} away" in text_of(client, stream), 60)
        began = time.monotonic()
        text = text_of(client, "overview/")
        assert time.monotonic() - began < 5
        assert f"{prefix.upper()}_RECV: the leader does not hear from {lost}" in text
    finally:
        nats_cluster[lost].start()
    wait_for(lambda: re.search(healthy, text_of(client, stream)), 60)
