"""Number formats: types, the grammar of their names, and exact storage sizes."""
