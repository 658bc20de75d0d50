"""Users in one database, which has a replica that lags behind; sessions in another one."""

from __future__ import annotations

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = [
    "channels",
    "wsgateway",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "tests.people_app",
]
DATABASES = {
    name: {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    for name in ("default", "people", "people_replica")
}
DATABASE_ROUTERS = ["tests.people_app.models.PeopleRouter"]
AUTH_USER_MODEL = "people_app.Person"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
PUBSUB_BROKER = "memory"
