import os

import wsgateway.asgi

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

application = wsgateway.asgi.application()
