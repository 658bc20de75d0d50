"""What ``manage.py runevents`` does: gateways' events become Django's signals."""
