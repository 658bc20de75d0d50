"""The server API: publishing and asking over HTTP, for backends in any language.

``path("api/gateway/", include("wsgateway.api.urls"))`` mounts it. It needs django-ninja, the extra
``wsgateway[api]``; the keys do not.
"""
