"""The store's tables and views as numbered SQL steps, applied in order by :mod:`consumers.migrate`."""
