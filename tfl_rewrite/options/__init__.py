"""What the fields of dataclasses say beside their types: options, and keys of JSON data."""
