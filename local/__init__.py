"""Everything on one machine without Docker: the local ClickHouse store.

``local.store`` starts, finds and stops it; ``local.store_server`` is the process itself.
"""
