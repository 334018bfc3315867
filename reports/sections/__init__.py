"""The sections of a report, one file each: ``info`` (pure data) and how it is shown."""
