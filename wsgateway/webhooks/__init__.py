"""HTTP requests to a project's own endpoints: signed, bounded, and sent only where they may go."""
