"""What `recipes/evaluate.py` is made of: data, measuring, records, tables, the report."""
