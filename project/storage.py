"""Static files under hashed names, and under plain ones as long as nothing was collected."""

from __future__ import annotations

from whitenoise.storage import CompressedManifestStaticFilesStorage

__all__ = ["StaticStorage"]


class StaticStorage(CompressedManifestStaticFilesStorage):  # type: ignore[misc]
    """Django's manifest storage that does not end in errors before ``collectstatic`` ran."""

    support_js_module_import_aggregation = True

    def stored_name(self, name: str) -> str:
        """Return the hashed name, or *name* itself if it was never collected."""
        try:
            return str(super().stored_name(name))
        except ValueError:
            return name
