"""The site's settings. Only this module reads the environment.

docs/reference/settings.md lists the variables.

Without DEBUG=1 this is production, however it is started: SECRET_KEY is required, HTTPS is
enforced, and plain cookies are not accepted. `make run` sets DEBUG=1 unless SECRET_KEY is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dj_database_url

from project import env

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = env.flag(os.environ, "DEBUG", False)
HTTPS = env.flag(os.environ, "HTTPS", not DEBUG)

SECRET_KEY = (
    os.environ.get("SECRET_KEY") or "django-insecure-development-only"
    if DEBUG
    else env.required(
        os.environ,
        "SECRET_KEY",
        "set it to 50 or more random characters; for development on your own machine set DEBUG=1, "
        "or use `make run`",
    )
)

ALLOWED_HOSTS = env.items(os.environ, "ALLOWED_HOSTS")
CSRF_TRUSTED_ORIGINS = env.items(os.environ, "CSRF_TRUSTED_ORIGINS")

# The path that the site is below, if it does not have the host to itself
FORCE_SCRIPT_NAME = env.site_path(os.environ, "FORCE_SCRIPT_NAME")
SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = FORCE_SCRIPT_NAME or "/"

INSTALLED_APPS = [
    "project.apps.RunserverConfig",  # most projects: "daphne"
    "channels",
    "wsgateway",
    "wsgateway.outbox",
    "project.demo",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "project.middleware.content_security_policy",
    "django.middleware.security.SecurityMiddleware",
    "project.middleware.StaticFilesMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"
WSGI_APPLICATION = "project.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {
    "default": dj_database_url.config(
        default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}", conn_max_age=60, conn_health_checks=True
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "demo:page"
LOGOUT_REDIRECT_URL = "demo:start"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True

# -- Static files --------------------------------------------------------------------------

STATIC_URL = f"{FORCE_SCRIPT_NAME or ''}/static/"
STATIC_ROOT = Path(os.environ.get("STATIC_ROOT") or BASE_DIR / "staticfiles")
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": (
            "django.contrib.staticfiles.storage.StaticFilesStorage"
            if DEBUG
            else "project.storage.StaticStorage"
        )
    },
}
WHITENOISE_USE_FINDERS = True

# -- Security ------------------------------------------------------------------------------

if HTTPS:
    SECURE_SSL_REDIRECT = True
    # The platform's router (Heroku's, or yours) ends TLS and must set this header itself
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = env.number(os.environ, "SECURE_HSTS_SECONDS", 3600)
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
X_FRAME_OPTIONS = "DENY"

# -- The gateway ---------------------------------------------------------------------------

if DEBUG:
    WSGATEWAY_IDENTITY = [
        # First: the demo page connects its second user with a token beside the session's cookie
        "wsgateway.identity.TokenIdentity",
        "wsgateway.identity.SessionIdentity",
        "wsgateway.identity.CookieIdentity",
    ]
else:
    WSGATEWAY_IDENTITY = [
        "wsgateway.identity.SessionIdentity",
        "wsgateway.identity.TokenIdentity",
    ]

# What clients may talk to: the demo's service, and the one in the article that wsgateway began with
WSGATEWAY_SERVICES = ["demo", "service1"]

# PUBSUB_BROKER, NATS_BROKER_URL and every WSGATEWAY_… setting may come from the environment
globals().update(env.gateway_settings(os.environ))

CHANNEL_LAYERS: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "wsgateway.layer.NatsChannelLayer"},
}

LOG_LEVELS = ("INFO", "DEBUG", "WARNING", "ERROR")
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"},
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
        },
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": env.choice(os.environ, "LOG_FORMAT", ("line", "json")),
        },
    },
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "wsgateway": {"level": env.choice(os.environ, "LOG_LEVEL", LOG_LEVELS)},
        "daphne.server": {"level": "INFO"},  # where it listens
    },
}
if LOGGING["handlers"]["console"]["formatter"] == "line":
    del LOGGING["formatters"]["json"]  # python-json-logger may not be installed
