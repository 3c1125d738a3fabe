"""Search spaces as plain data: dicts, JSON and YAML files, and a JSON schema."""
