"""System checks: every unsafe or impossible setting, each with what to do about it.

E is an error, W a warning. Those from 100 on appear with ``check --deploy`` only.
``docs/reference/errors.md`` is checked against them.
"""

from __future__ import annotations

from wsgateway.checks.base import Check
from wsgateway.checks.bridges import (
    check_bridge_packages,
    check_bridges,
    check_production_bridges,
)
from wsgateway.checks.identity import (
    check_identity_webhook,
    check_production_tokens,
    check_resolvers,
    check_strangers,
    check_tokens,
    check_user_names,
    check_watching,
)
from wsgateway.checks.installation import (
    check_apps,
    check_entry_point,
    check_probes,
    check_runserver,
)
from wsgateway.checks.layers import check_layer_differences, check_layers, check_other_layers
from wsgateway.checks.production import (
    check_production_broker,
    check_production_identity,
    check_production_metrics,
    check_production_origins,
    check_production_replicas,
    check_production_transport,
)
from wsgateway.checks.servers import check_urls
from wsgateway.checks.services import (
    check_production_services,
    check_services,
    check_topic_handlers,
    check_topic_limits,
    check_topic_sockets,
)
from wsgateway.checks.start import START_CHECKS
from wsgateway.checks.values import (
    check_duplicate_window,
    check_files,
    check_misspelt_names,
    check_names,
    check_values,
)
from wsgateway.checks.webhooks import (
    check_production_webhooks,
    check_webhook_package,
    check_webhooks,
)

__all__ = ["CHECKS", "DEPLOY_CHECKS", "START_CHECKS"]

CHECKS: list[Check] = [
    check_names,
    check_misspelt_names,
    check_values,
    check_resolvers,
    check_user_names,
    check_strangers,
    check_tokens,
    check_identity_webhook,
    check_watching,
    check_files,
    check_urls,
    check_apps,
    check_runserver,
    check_entry_point,
    check_probes,
    check_layers,  # after it: importing the application may register serializers
    check_layer_differences,
    check_other_layers,
    check_services,
    check_topic_handlers,
    check_topic_limits,
    check_topic_sockets,
    check_duplicate_window,
    check_webhooks,
    check_webhook_package,
    check_bridges,
    check_bridge_packages,
]
DEPLOY_CHECKS: list[Check] = [
    check_production_broker,
    check_production_transport,
    check_production_replicas,
    check_production_identity,
    check_production_tokens,
    check_production_origins,
    check_production_services,
    check_production_metrics,
    check_production_webhooks,
    check_production_bridges,
]
