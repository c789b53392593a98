"""The status page: what the service does, shown in a browser of the same user on the same machine.

    POST /v1/page ──► on_demand ──► door ─┬─ site ── guard, keys   who may read what
      (Unix socket)                       └─ feed ── content       what there is to read

Nothing here is imported, and nothing listens on TCP, before somebody asks for the page.
"""
