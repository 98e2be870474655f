"""Image files and folders on their way into an archive."""
